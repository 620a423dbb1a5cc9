//! Compiled libraries and pipelines, each made on first use.

use crate::dispatch::Kernel;
use crate::library::FunctionConstant;
use crate::runtime::Runtime;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What tells pipelines apart.
type Key = (&'static str, String, Vec<(FunctionConstant, u32)>, usize);

/// The pipelines of a device.
pub(crate) struct Pipelines<R: Runtime> {
    made: Mutex<Made<R>>,
}

struct Made<R: Runtime> {
    libraries: HashMap<&'static str, Arc<R::Library>>,
    pipelines: HashMap<Key, Arc<R::Pipeline>>,
}

impl<R: Runtime> Default for Pipelines<R> {
    fn default() -> Self {
        let made = Made { libraries: HashMap::new(), pipelines: HashMap::new() };
        Self { made: Mutex::new(made) }
    }
}

impl<R: Runtime> Pipelines<R> {
    /// The pipeline of a kernel that runs with `threads` threads of a threadgroup.
    ///
    /// # Errors
    /// The log of the compiler, with the file and the function.
    pub(crate) fn get(
        &self,
        runtime: &R,
        kernel: &Kernel,
        threads: usize,
    ) -> Result<Arc<R::Pipeline>, String> {
        let Kernel { library, function, constants } = kernel;
        let key = (library.name, function.clone(), constants.clone(), threads);
        // A map is never left half changed, so that one after a panic is still right.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.pipelines.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let compiled = match made.libraries.get(library.name) {
            Some(compiled) => Arc::clone(compiled),
            None => {
                let compiled = runtime
                    .library(library, &library.source())
                    .map_err(|log| format!("{}.metal does not compile: {log}", library.name))?;
                let compiled = Arc::new(compiled);
                made.libraries.insert(library.name, Arc::clone(&compiled));
                compiled
            }
        };
        let pipeline = runtime
            .pipeline(&compiled, function, constants, threads)
            .map_err(|log| format!("kernel {function} of {}.metal: {log}", library.name))?;
        let pipeline = Arc::new(pipeline);
        made.pipelines.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }
}
