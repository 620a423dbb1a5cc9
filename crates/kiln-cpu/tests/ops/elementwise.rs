//! Elementwise operations.

use super::{DIMS, check};
use kiln_core::DType;
use kiln_core::ops::*;

#[test]
fn every_operation_in_every_form() {
    for x in DType::FLOATS {
        for (index, dim) in DIMS.into_iter().chain([20_001]).enumerate() {
            let rows = [1, 2, 5, 40][index % 4];
            check(&format!("elementwise {x} [{rows}, {dim}]"), 1e-6, |make| {
                let a = make.strided(x, [rows, dim])?;
                let b = make.float(x, [rows, dim])?;
                let vectors = [make.float(x, [dim])?, make.float(DType::F32, [dim])?];
                let mut outputs = Vec::new();
                let mut rec = make.device.record();
                for b in [&b, &vectors[0], &vectors[1]] {
                    let output = make.output(x, [rows, dim])?;
                    rec.push(Add { a: &a, b, output: &output })?;
                    outputs.push(output);
                    let output = make.output(x, [rows, dim])?;
                    rec.push(Mul { a: &a, b, output: &output })?;
                    outputs.push(output);
                }
                let unary = make.output(x, [rows, dim])?;
                rec.push(Scale { input: &a, output: &unary, factor: -0.7 })?;
                outputs.push(unary);
                let unary = make.output(x, [rows, dim])?;
                rec.push(Softcap { input: &a, output: &unary, cap: 0.5 })?;
                outputs.push(unary);
                let gated = [make.strided(x, [rows, dim])?, make.output(x, [rows, dim])?];
                rec.push(GeluMul { gate: &a, up: &b, output: &gated[0] })?;
                rec.push(SiluMul { gate: &a, up: &b, output: &gated[1] })?;
                outputs.extend(gated);
                rec.finish()?.run()?;
                Ok(outputs)
            });
        }
    }
}

#[test]
fn outputs_in_place() {
    for x in DType::FLOATS {
        check(&format!("elementwise in place {x}"), 3e-6, |make| {
            let dims = [3, 1000];
            let fixed = make.float(x, dims)?;
            let mut outputs = Vec::new();
            let mut rec = make.device.record();
            for second in [false, true] {
                for op in 0..4 {
                    let changed = make.float(x, dims)?;
                    let (a, b) = if second { (&fixed, &changed) } else { (&changed, &fixed) };
                    let output = &changed;
                    match op {
                        0 => rec.push(Add { a, b, output })?,
                        1 => rec.push(Mul { a, b, output })?,
                        2 => rec.push(GeluMul { gate: a, up: b, output })?,
                        _ => rec.push(SiluMul { gate: a, up: b, output })?,
                    }
                    outputs.push(changed);
                }
            }
            let scaled = make.float(x, dims)?;
            rec.push(Scale { input: &scaled, output: &scaled, factor: 3.0 })?;
            rec.push(Softcap { input: &scaled, output: &scaled, cap: 2.0 })?;
            outputs.push(scaled);
            rec.finish()?.run()?;
            Ok(outputs)
        });
    }
}

#[test]
fn extremes_of_gates_and_caps() {
    let values = [0.0, -0.0, 1e-30, -1e-30, 1e-3, 5.0, -5.0, 30.0, -30.0, 100.0, -100.0, 3e4, -3e4];
    check("extremes", 1e-6, |make| {
        let mut outputs = Vec::new();
        let mut rec = make.device.record();
        // One value per row: errors count against that value.
        for value in values.into_iter().chain([f32::NAN]) {
            let x = make.put(DType::F32, [1, 1], &[value])?;
            let one = make.put(DType::F32, [1, 1], &[1.0])?;
            let y = [(); 3].map(|()| make.output(DType::F32, [1, 1]));
            let [a, b, c] = y;
            let (a, b, c) = (a?, b?, c?);
            rec.push(Softcap { input: &x, output: &a, cap: 30.0 })?;
            rec.push(SiluMul { gate: &x, up: &one, output: &b })?;
            if value.abs() < 4.0 || value > 0.0 {
                rec.push(GeluMul { gate: &x, up: &one, output: &c })?;
                outputs.push(c);
            }
            outputs.extend([a, b]);
        }
        rec.finish()?.run()?;
        Ok(outputs)
    });
}
