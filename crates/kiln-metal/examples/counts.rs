//! Prints the table of docs/metal.md: what each operation of a layer is in dispatches, barriers and
//! bytes, counted while its kernels run, beside the published geometry of the reference system.
//!
//!     cargo run --release -p kiln-metal --example counts

use kiln_core::ops::*;
use kiln_core::{DType, Device, Recording, Result, Tensor};
use kiln_metal::{Counts, HostConfig, host_device};
use std::sync::{Arc, PoisonError};

/// Rows, row length, heads, head dimension and experts of a token of a model with parallel experts.
const ROWS: usize = 1;
const DIM: usize = 2816;
const HEADS: usize = 8;
const HEAD_DIM: usize = 512;
const TOP_K: usize = 8;

/// What the reference publishes about its form of an operation.
#[derive(Clone, Copy)]
struct Published {
    dispatches: usize,
    threadgroup_memory: usize,
    /// Bytes moved, counted by running its published kernel with `msl-host`.
    bytes: Option<u64>,
}

/// One dispatch of which only the host code is published.
fn host_code(threadgroup_memory: usize) -> Option<Published> {
    Some(Published { dispatches: 1, threadgroup_memory, bytes: None })
}

/// Tensors of zeros and ones.
struct Operands<'a>(&'a Device);

impl Operands<'_> {
    fn ones(&self, shape: &[usize]) -> Result<Tensor> {
        let shape = kiln_core::Shape::from_slice(shape).unwrap_or([1].into());
        self.0.upload(&vec![1.0f32; shape.iter().product()], shape)
    }

    fn rows(&self) -> Result<Tensor> {
        self.ones(&[ROWS, DIM])
    }

    fn weight(&self) -> Result<Tensor> {
        self.ones(&[DIM])
    }
}

fn main() -> Result<()> {
    let counts = Counts::default();
    let config =
        HostConfig { schedules: 1, counts: Some(Arc::clone(&counts)), ..HostConfig::default() };
    let device = host_device(config)?;
    let o = Operands(&device);
    println!(
        "| operation | dispatches | barriers between | threadgroup memory | barriers inside | \
         bytes moved | bytes of its operands | reference: dispatches | threadgroup memory | \
         bytes moved |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let show = |published: Option<Published>, record: &dyn Fn(&mut Recording) -> Result<()>| {
        let mut recording = device.record();
        record(&mut recording)?;
        let step = recording.finish()?;
        counts.lock().unwrap_or_else(PoisonError::into_inner).clear();
        step.run()?;
        print(&step, &counts, published);
        Ok::<(), kiln_core::Error>(())
    };
    let eps = 1e-6;

    show(host_code(32), &|rec| {
        let [x, y, w] = [o.rows()?, o.rows()?, o.weight()?];
        rec.push(RmsNorm { input: &x, weight: Some(&w), output: &y, eps })
    })?;
    show(host_code(1024), &|rec| {
        let [x, s, y, w] = [o.rows()?, o.rows()?, o.rows()?, o.weight()?];
        rec.push(RmsNormMul { input: &x, weight: Some(&w), scale: &s, output: &y, eps })
    })?;
    show(host_code(1024), &|rec| {
        let [x, a, b, c] = [o.rows()?, o.rows()?, o.rows()?, o.rows()?];
        let [u, v, w] = [o.weight()?, o.weight()?, o.weight()?];
        rec.push(RmsNormTriple {
            input: &x,
            weight_a: &u,
            weight_b: &v,
            weight_c: &w,
            output_a: &a,
            output_b: &b,
            output_c: &c,
            eps,
        })
    })?;
    show(host_code(1024), &|rec| {
        let [hidden, attn, residual] = [o.rows()?, o.rows()?, o.rows()?];
        let [a, b, c] = [o.rows()?, o.rows()?, o.rows()?];
        let [t, u, v, w] = [o.weight()?, o.weight()?, o.weight()?, o.weight()?];
        rec.push(PostAttnTripleNorm {
            hidden: &hidden,
            attn: &attn,
            weight_post: &t,
            weight_a: &u,
            weight_b: &v,
            weight_c: &w,
            residual: &residual,
            output_a: &a,
            output_b: &b,
            output_c: &c,
            eps,
        })
    })?;
    show(host_code(32), &|rec| {
        let [attn, moe, residual] = [o.rows()?, o.rows()?, o.rows()?];
        let [mlp, output] = [o.rows()?, o.rows()?];
        let [v, w, scalar] = [o.weight()?, o.weight()?, o.ones(&[1])?];
        rec.push(PostFfNormEndLayer {
            attn: &attn,
            moe: &moe,
            weight_moe: &v,
            residual: &residual,
            weight_mlp: &w,
            layer_scalar: &scalar,
            mlp: &mlp,
            output: &output,
            eps,
        })
    })?;
    show(host_code((32 + DIM) * 4), &|rec| {
        let [attn, residual, mlp, output] = [o.rows()?, o.rows()?, o.rows()?, o.rows()?];
        let [experts, route] = [o.ones(&[ROWS, TOP_K, DIM])?, o.ones(&[ROWS, TOP_K])?];
        let [v, w, scalar] = [o.weight()?, o.weight()?, o.ones(&[1])?];
        rec.push(MoePostFfNormEndLayer {
            attn: &attn,
            experts: &experts,
            route: &route,
            weight_moe: &v,
            residual: &residual,
            weight_mlp: &w,
            layer_scalar: &scalar,
            mlp: &mlp,
            output: &output,
            eps,
        })
    })?;
    show(None, &|rec| {
        let [a, b, residual, output] = [o.rows()?, o.rows()?, o.rows()?, o.rows()?];
        let w = o.weight()?;
        rec.push(AddRmsNorm {
            a: &a,
            b: &b,
            weight: Some(&w),
            residual: &residual,
            output: &output,
            eps,
        })
    })?;
    // As the reference's published kernel: bf16, no copies, and a table of its own for the angles.
    let published = Published { dispatches: 1, threadgroup_memory: 2048, bytes: Some(40_960) };
    show(Some(published), &|rec| {
        let heads = [ROWS, HEADS, HEAD_DIM];
        let [x, y] = [device.tensor(DType::BF16, heads)?, device.tensor(DType::BF16, heads)?];
        let w = device.tensor(DType::BF16, [HEAD_DIM])?;
        let positions = device.upload(&[100u32; ROWS], [ROWS])?;
        rec.push(HeadNormRope {
            input: &x,
            weight: Some(&w),
            positions: Some(&positions),
            freq_factors: None,
            cos: None,
            sin: None,
            cache_start: None,
            output: Some(&y),
            output_bf16: None,
            output_f32: None,
            cache: None,
            pairing: RopePairing::Leading,
            half: 64,
            theta: 1e6,
            normalize: true,
            eps,
            copy_layout: HeadLayout::HeadMajor,
        })
    })?;
    show(host_code(HEAD_DIM * 4), &|rec| {
        let heads = [ROWS, HEADS, HEAD_DIM];
        let [x, y, w] = [o.ones(&heads)?, o.ones(&heads)?, o.ones(&[HEAD_DIM])?];
        let copy = device.tensor(DType::BF16, [HEADS, ROWS, HEAD_DIM])?;
        let positions = device.upload(&[100u32; ROWS], [ROWS])?;
        rec.push(HeadNormRope {
            input: &x,
            weight: Some(&w),
            positions: Some(&positions),
            freq_factors: None,
            cos: None,
            sin: None,
            cache_start: None,
            output: Some(&y),
            output_bf16: Some(&copy),
            output_f32: None,
            cache: None,
            pairing: RopePairing::Spanning,
            half: 64,
            theta: 1e6,
            normalize: true,
            eps,
            copy_layout: HeadLayout::HeadMajor,
        })
    })?;
    show(None, &|rec| {
        let x = o.ones(&[ROWS, 128])?;
        let ids = device.tensor(DType::U32, [ROWS, TOP_K])?;
        let weights = o.ones(&[ROWS, TOP_K])?;
        rec.push(MoeRoute { logits: &x, ids: &ids, weights: &weights, renormalize: true })
    })?;
    show(None, &|rec| {
        let [x, y, z] = [o.rows()?, o.rows()?, o.rows()?];
        rec.push(GeluMul { gate: &x, up: &y, output: &z })
    })
}

/// One row of the table: the steps of a plan added up.
fn print(step: &kiln_core::Executable, counts: &Counts, published: Option<Published>) {
    let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let names: Vec<_> = step.plan().steps().iter().map(|step| step.op.name()).collect();
    let needed: u64 = step.plan().steps().iter().map(|step| step.op.bytes()).sum();
    let moved: u64 = counts.iter().map(|c| c.device_bytes_read + c.device_bytes_written).sum();
    let memory = counts.iter().map(|c| c.threadgroup_memory).max().unwrap_or(0);
    let inside = counts.iter().map(|c| c.threadgroup_barriers).max().unwrap_or(0);
    let between = counts.iter().filter(|c| c.barrier).count();
    let reference = match published {
        Some(Published { dispatches, threadgroup_memory, bytes }) => {
            let bytes = bytes.map_or("kernel not published".to_owned(), |bytes| bytes.to_string());
            format!("{dispatches} | {threadgroup_memory} | {bytes}")
        }
        None => "not published | | ".to_owned(),
    };
    println!(
        "| `{}` | {} | {between} | {memory} | {inside} | {moved} | {needed} | {reference} |",
        names.join("`, `"),
        counts.len(),
    );
}
