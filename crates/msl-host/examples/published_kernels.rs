//! Runs kernels that others published against plain computations.
//!
//! `cargo run --release -p msl-host --example published_kernels -- FOLDER [CACHE]`, where FOLDER holds the Metal sources of
//! the package `candle-metal-kernels`. `tools/published_kernels.py` fetches it and starts this.

use std::error::Error;
use std::path::Path;

use msl_host::{
    Binding, Buffer, CompileOptions, Compiler, Config, ConstantValue, Dispatch, FunctionConstants,
    Library,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Runner<'a> {
    folder: &'a Path,
    compiler: Compiler,
    passed: usize,
    failed: usize,
}

impl Runner<'_> {
    fn library(&self, file: &str, functions: &[&str]) -> Outcome<Library> {
        let source = std::fs::read_to_string(self.folder.join(file))?;
        let functions = Some(functions.iter().map(|name| name.to_string()).collect());
        Ok(self
            .compiler
            .compile_with(&source, &CompileOptions { functions, ..Default::default() })?)
    }

    fn report(&mut self, name: &str, outcome: Outcome<f32>, bound: f32) {
        match outcome {
            Ok(error) if error <= bound => {
                self.passed += 1;
                println!("ok      {name}: largest error {error:e}");
            }
            Ok(error) => {
                self.failed += 1;
                println!("FAILED  {name}: largest error {error:e}, bound {bound:e}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name}: {error}");
            }
        }
    }
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 0.9).collect()
}

fn distance(got: &[f32], want: &[f32]) -> f32 {
    got.iter()
        .zip(want)
        .map(|(a, b)| if a.is_nan() { f32::INFINITY } else { (a - b).abs() })
        .fold(0.0, f32::max)
}

type Plain = fn(f32) -> f32;

fn unary(runner: &mut Runner<'_>) {
    let list: [(&str, Plain); 14] = [
        ("exp", f32::exp),
        ("cos", f32::cos),
        ("sin", f32::sin),
        ("sqr", |x| x * x),
        ("neg", |x| -x),
        ("abs", f32::abs),
        ("ceil", f32::ceil),
        ("floor", f32::floor),
        ("round", f32::round),
        ("relu", |x| x.max(0.0)),
        ("recip", |x| 1.0 / x),
        ("tanh", f32::tanh),
        ("silu", |x| x / (1.0 + (-x).exp())),
        ("sigmoid", |x| 1.0 / (1.0 + (-x).exp())),
    ];
    let names: Vec<String> = list.iter().map(|(name, _)| format!("{name}_f32")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let library = match runner.library("unary.metal", &names) {
        Ok(library) => library,
        Err(error) => return runner.report("unary.metal", Err(error), 0.0),
    };
    let input = values(100);
    for (name, (_, plain)) in names.iter().zip(list) {
        let outcome = (|| {
            let (x, y) = (Buffer::from_slice(&input)?, Buffer::new(400)?);
            library.function(name, &FunctionConstants::new())?.dispatch(
                &Dispatch::threads([128, 1, 1], [32, 1, 1])
                    .bind(Binding::bytes(0, &100u64.to_ne_bytes()))
                    .bind(Binding::buffer(1, &x, 0))
                    .bind(Binding::buffer(2, &y, 0)),
            )?;
            let want: Vec<f32> = input.iter().map(|&x| plain(x)).collect();
            Ok(distance(&y.to_vec::<f32>()?, &want))
        })();
        runner.report(name, outcome, 1e-4);
    }
}

fn binary_and_affine(runner: &mut Runner<'_>) {
    let (a, b) = (values(64), values(80)[16..].to_vec());
    for (name, plain) in
        [("add_f32", (|a, b| a + b) as fn(f32, f32) -> f32), ("mul_f32", |a, b| a * b)]
    {
        let outcome = (|| {
            let library = runner.library("binary.metal", &[name])?;
            let (x, y, z) = (Buffer::from_slice(&a)?, Buffer::from_slice(&b)?, Buffer::new(256)?);
            library.function(name, &FunctionConstants::new())?.dispatch(
                &Dispatch::threads([64, 1, 1], [64, 1, 1])
                    .bind(Binding::bytes(0, &64u64.to_ne_bytes()))
                    .bind(Binding::buffer(1, &x, 0))
                    .bind(Binding::buffer(2, &y, 0))
                    .bind(Binding::buffer(3, &z, 0)),
            )?;
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| plain(*a, *b)).collect();
            Ok(distance(&z.to_vec::<f32>()?, &want))
        })();
        runner.report(name, outcome, 0.0);
    }
    let outcome = (|| {
        let library = runner.library("affine.metal", &["affine_f32"])?;
        let (x, y) = (Buffer::from_slice(&a)?, Buffer::new(256)?);
        library.function("affine_f32", &FunctionConstants::new())?.dispatch(
            &Dispatch::threads([64, 1, 1], [64, 1, 1])
                .bind(Binding::bytes(0, &64u64.to_ne_bytes()))
                .bind(Binding::bytes(1, &2.0f32.to_ne_bytes()))
                .bind(Binding::bytes(2, &0.5f32.to_ne_bytes()))
                .bind(Binding::buffer(3, &x, 0))
                .bind(Binding::buffer(4, &y, 0)),
        )?;
        let want: Vec<f32> = a.iter().map(|a| a * 2.0 + 0.5).collect();
        Ok(distance(&y.to_vec::<f32>()?, &want))
    })();
    runner.report("affine_f32", outcome, 1e-6);
}

/// The matrix product of candle and MLX: templates, function constants, simdgroup matrices.
fn gemm(runner: &mut Runner<'_>) {
    for transposed in [false, true] {
        let name = format!("gemm_n{}_f32_f32_32_32_16_2_2", if transposed { "t" } else { "n" });
        let outcome = (|| {
            let (m, n, k) = (40usize, 50usize, 24usize);
            let (a, b) = (values(m * k), values(k * n));
            let library = runner.library("mlx_gemm.metal", &[&name])?;
            let (x, y, z) =
                (Buffer::from_slice(&a)?, Buffer::from_slice(&b)?, Buffer::new(m * n * 4)?);
            let mut params = Vec::new();
            let (tiles_n, tiles_m) = (n.div_ceil(32), m.div_ceil(32));
            let ldb = if transposed { k } else { n };
            for value in [m, n, k, k, ldb, n, tiles_n, tiles_m] {
                params.extend((value as i32).to_ne_bytes());
            }
            for value in [m * k, k * n, m * n] {
                params.extend((value as u64).to_ne_bytes());
            }
            for value in [0, k / 16, 1, 0] {
                params.extend((value as i32).to_ne_bytes());
            }
            let mut constants = FunctionConstants::new();
            for (index, value) in [
                (10, false),
                (100, false),
                (110, false),
                (200, false),
                (201, false),
                (202, false),
                (300, false),
            ] {
                constants = constants.set(index, ConstantValue::Bool(value));
            }
            let strides: Vec<u8> = [0u64, 0].iter().flat_map(|v| v.to_ne_bytes()).collect();
            library.function(&name, &constants)?.dispatch(
                &Dispatch::threadgroups([tiles_n as u32, tiles_m as u32, 1], [32, 2, 2])
                    .bind(Binding::buffer(0, &x, 0))
                    .bind(Binding::buffer(1, &y, 0))
                    .bind(Binding::buffer(3, &z, 0))
                    .bind(Binding::bytes(4, &params))
                    .bind(Binding::bytes(6, &1i32.to_ne_bytes()))
                    .bind(Binding::bytes(7, &strides)),
            )?;
            let mut want = vec![0.0f32; m * n];
            for (at, value) in want.iter_mut().enumerate() {
                let (row, column) = (at / n, at % n);
                *value = (0..k)
                    .map(|i| {
                        a[row * k + i]
                            * if transposed { b[column * k + i] } else { b[i * n + column] }
                    })
                    .sum();
            }
            Ok(distance(&z.to_vec::<f32>()?, &want))
        })();
        runner.report(&name, outcome, 1e-4);
    }
}

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.next().ok_or("usage: published_kernels FOLDER [CACHE]")?;
    let config = Config { cache: arguments.next().map(Into::into), ..Config::default() };
    let mut runner = Runner {
        folder: Path::new(&folder),
        compiler: Compiler::new(config)?,
        passed: 0,
        failed: 0,
    };
    unary(&mut runner);
    binary_and_affine(&mut runner);
    gemm(&mut runner);
    println!("{} passed, {} failed", runner.passed, runner.failed);
    if runner.failed > 0 { Err("kernels failed".into()) } else { Ok(()) }
}
