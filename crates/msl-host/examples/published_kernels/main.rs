//! Runs kernels that others published against plain computations.
//!
//! `cargo run --release -p msl-host --example published_kernels -- FOLDER [CACHE]`, where FOLDER has the Metal sources of
//! `candle-metal-kernels` in `candle/` and `ggml-metal.metal` of `llama-cpp-sys-2`, its headers put in their places, in
//! `ggml/`. `tools/published_kernels.py` fetches both and starts this.

mod candle;
mod ggml;
mod ggml_attention;
mod ggml_matmul;
mod support;

use support::{Outcome, Runner};

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let folder = arguments.next().ok_or("usage: published_kernels FOLDER [CACHE]")?;
    let mut runner = Runner::new(folder.into(), arguments.next().map(Into::into))?;
    candle::run(&mut runner);
    ggml::run(&mut runner);
    ggml_matmul::run(&mut runner);
    ggml_attention::run(&mut runner);
    println!("{} passed, {} failed", runner.passed, runner.failed);
    if runner.failed > 0 { Err("kernels failed".into()) } else { Ok(()) }
}
