//! Finds the C++ compiler and turns MSL source into libraries.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{CompileError, Library};

/// How kernels are compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The C++ compiler: g++ 11 or later, or clang++ 14 or later. `None` tries `g++`, then `clang++`.
    pub compiler: Option<PathBuf>,
    /// Folder of compiled libraries, made on demand. `None` compiles into a temporary folder every time.
    pub cache: Option<PathBuf>,
    /// Optimisation level, 0 to 3.
    pub optimization: u8,
    /// Compilers that run at the same time for one source.
    pub jobs: usize,
}

impl Default for Config {
    /// The compiler of the path, no cache, level 1, two jobs.
    fn default() -> Self {
        Config { compiler: None, cache: None, optimization: 1, jobs: 2 }
    }
}

/// How one source is compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompileOptions {
    /// The kernels to compile; `None` is all. Large sources of which few kernels run compile faster so.
    pub functions: Option<Vec<String>>,
    /// Macros defined before the source, name and value, as `MTLCompileOptions.preprocessorMacros`.
    pub macros: Vec<(String, String)>,
}

/// A C++ compiler for MSL source.
#[derive(Debug)]
pub struct Compiler {
    config: Config,
    invocations: AtomicU64,
}

impl Compiler {
    /// Finds the compiler.
    pub fn new(config: Config) -> Result<Self, CompileError> {
        Ok(Compiler { config, invocations: AtomicU64::new(0) })
    }

    /// Translates and compiles all kernels of `source`, or loads them from the cache.
    pub fn compile(&self, source: &str) -> Result<Library, CompileError> {
        self.compile_with(source, &CompileOptions::default())
    }

    /// Translates and compiles `source`, or loads it from the cache.
    pub fn compile_with(
        &self,
        source: &str,
        options: &CompileOptions,
    ) -> Result<Library, CompileError> {
        let _ = (source, options, &self.config);
        Err(CompileError::Platform)
    }

    /// How often this value started the C++ compiler.
    pub fn invocations(&self) -> u64 {
        self.invocations.load(Ordering::Relaxed)
    }
}
