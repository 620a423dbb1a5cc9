//! What the tests share.

use std::sync::OnceLock;

use msl_host::{
    CompileError, Compiler, Config, Counters, Dispatch, DispatchError, FunctionConstants, Library,
};

/// One compiler with a cache for the whole test binary.
pub fn compiler() -> &'static Compiler {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    COMPILER.get_or_init(|| {
        let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("msl-host-cache");
        Compiler::new(Config { cache: Some(cache), ..Config::default() }).unwrap()
    })
}

/// Compiles a source, or panics with the compiler's words.
pub fn compile(source: &str) -> Library {
    match compiler().compile(source) {
        Ok(library) => library,
        Err(CompileError::Compiler { log, .. }) => panic!("{log}"),
        Err(other) => panic!("{other}"),
    }
}

/// Runs a kernel of the library.
pub fn run(
    library: &Library,
    name: &str,
    constants: &FunctionConstants,
    dispatch: Dispatch<'_>,
) -> Result<Counters, DispatchError> {
    library.function(name, constants).unwrap().dispatch(&dispatch)
}
