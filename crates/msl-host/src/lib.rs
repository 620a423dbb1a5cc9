//! Runs Metal Shading Language (MSL) compute kernels on a Linux host, and checks them while they run.
//!
//! A [`Compiler`] translates MSL source text to C++, compiles it with g++ or clang++ and keeps the result
//! on disk. A [`Library`] lists the kernels of the source. A [`Function`] is a kernel with values for its
//! function constants; [`Function::dispatch`] runs it over [`Buffer`]s and returns [`Counters`], or the
//! first [`Fault`] that a check found: an access out of bounds, a read of memory that nothing wrote,
//! two threads in conflict, a barrier that not all threads reach.
//!
//! ```no_run
//! use msl_host::{Binding, Buffer, Compiler, Config, Dispatch, FunctionConstants};
//!
//! let source = r"
//!     #include <metal_stdlib>
//!     using namespace metal;
//!     kernel void saxpy(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
//!                       constant float &a [[buffer(2)]], uint i [[thread_position_in_grid]]) {
//!         y[i] += a * x[i];
//!     }";
//! let library = Compiler::new(Config::default())?.compile(source)?;
//! let saxpy = library.function("saxpy", &FunctionConstants::new())?;
//! let x = Buffer::from_slice(&[1.0f32; 64])?;
//! let y = Buffer::from_slice(&[2.0f32; 64])?;
//! let counters = saxpy.dispatch(
//!     &Dispatch::threads([64, 1, 1], [32, 1, 1])
//!         .bind(Binding::buffer(0, &x, 0))
//!         .bind(Binding::buffer(1, &y, 0))
//!         .bind(Binding::bytes(2, &3.0f32.to_ne_bytes())),
//! )?;
//! assert_eq!(y.to_vec::<f32>()?, [5.0; 64]);
//! assert_eq!(counters.device_bytes_read, 64 * (4 + 4));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compiler;
mod dispatch;
mod error;
mod library;
mod memory;
mod translate;

pub use compiler::{CompileOptions, Compiler, Config};
pub use dispatch::{Binding, Counters, Dispatch, Grid, RunOptions};
pub use error::{
    AccessKind, CompileError, Diagnostic, DispatchError, Fault, FaultKind, FunctionError,
    MemoryError, Region,
};
pub use library::{
    ArgumentInfo, ArgumentKind, ConstantInfo, ConstantType, ConstantValue, Function,
    FunctionConstants, FunctionInfo, Library,
};
pub use memory::{Buffer, Scalar};
