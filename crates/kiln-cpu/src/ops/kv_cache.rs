//! Appending to a key-value cache.

use super::values::{read, row_tasks, write};
use crate::exec::Lowering;
use crate::isa::{Simd, with_float_simd};
use crate::view::{Half, View};
use half::f16;
use kiln_core::DType;
use kiln_core::ops::KvAppend;
use kiln_core::quant::{BlockQ8_0, F16Bytes};

/// Writes tokens to their slots.
pub(super) fn kv_append(op: &KvAppend<View>, lowering: &mut Lowering) {
    let KvAppend { input, start, cache, ring } = op.clone();
    let [tokens, heads, dim] = [input.extent(0), input.extent(1), input.last()];
    let capacity = cache.extent(1);
    let isa = lowering.isa;
    row_tasks(lowering, [tokens * heads, dim], move |rows, scratch| {
        let [buffer] = scratch.floats([dim]);
        // SAFETY: one value; the planner's hazards keep its writers out of this step.
        let start = unsafe { start.row::<u32, 0>([])[0] } as usize;
        with_float_simd!(isa, s => s.run(#[inline(always)] || {
            for row in rows {
                let (token, head) = (row / heads, row % heads);
                let slot = if ring { (start + token) % capacity } else { start + token };
                let kept = if ring { token + capacity >= tokens } else { slot < capacity };
                if !kept {
                    continue;
                }
                let (from, to) = (input.row_ptr([token, head]), cache.row_ptr([head, slot]));
                // SAFETY: rows of equal length; kept tokens have slots of their own.
                unsafe {
                    if input.dtype() == cache.dtype() {
                        std::ptr::copy_nonoverlapping(from, to, input.stride(2));
                    } else {
                        let x = read(input.dtype(), from, buffer);
                        store_row(s, std::slice::from_raw_parts(x, dim), cache.dtype(), to);
                    }
                }
            }
        }));
    });
}

/// Writes a row of values as a row of a cache.
///
/// # Safety
/// There is room for a row of type `dtype` at `to`, which the caller has alone; `dtype` is that of a
/// cache.
#[inline(always)]
pub(super) unsafe fn store_row<S: Simd>(s: S, values: &[f32], dtype: DType, to: *mut u8) {
    // SAFETY: by the contract; blocks have no alignment.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(values.as_ptr(), to.cast(), values.len()),
            DType::Q8_0 => {
                let blocks = to.cast::<BlockQ8_0>();
                for (index, values) in values.as_chunks::<32>().0.iter().enumerate() {
                    blocks.add(index).write(quantize(s, values));
                }
            }
            dtype => write(dtype, to, values),
        }
    }
}

/// Scale `max |x| / 127` and the nearest codes, ties to even; NaN where a value is not finite.
#[inline(always)]
fn quantize<S: Simd>(s: S, values: &[f32; 32]) -> BlockQ8_0 {
    // SAFETY: two halves of 16 values.
    let halves = unsafe { [s.load(values.as_ptr()), s.load(values.as_ptr().add(16))] };
    let magnitude = halves.map(|v| s.max(v, s.sub(s.splat(0.0), v)));
    let largest = s.maximum(s.max(magnitude[0], magnitude[1]));
    // Differences are NaN for what is not finite.
    let finite = s.sum(s.add(s.sub(halves[0], halves[0]), s.sub(halves[1], halves[1]))) == 0.0;
    let scale = if finite { largest / 127.0 } else { f32::NAN };
    // In f64, where a quotient next to a tie stays on its side.
    let exact = f64::from(largest) / 127.0;
    let mut qs = [0i8; 32];
    if finite && largest > 0.0 {
        for (code, value) in qs.iter_mut().zip(values) {
            *code = (f64::from(*value) / exact).round_ties_even() as i8;
        }
    }
    BlockQ8_0 { d: F16Bytes(<f16 as Half>::narrow(scale).to_le_bytes()), qs }
}
