//! Kernels: compiled once for each unit, cached on disk, loaded into the context.

use super::cache::{Cache, hash};
use super::context::Context;
use super::driver::Handle;
use super::error;
use super::nvrtc::Nvrtc;
use crate::kernels::Unit;
use kiln_core::Result;
use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

/// The kernels of a context.
pub(crate) struct Modules {
    context: Arc<Context>,
    cache: Cache,
    nvrtc_path: Option<PathBuf>,
    nvrtc: OnceLock<Result<Nvrtc>>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    modules: HashMap<Unit, Handle>,
    functions: HashMap<(Unit, String), (Handle, i32)>,
}

// SAFETY: handles of the driver, used with the context current.
unsafe impl Send for Loaded {}

impl Modules {
    pub(crate) fn new(
        context: &Arc<Context>,
        cache: Option<PathBuf>,
        nvrtc_path: Option<PathBuf>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            cache: Cache::new(cache),
            nvrtc_path,
            nvrtc: OnceLock::new(),
            loaded: Mutex::default(),
        }
    }

    /// The compiler: also where all kernels are in the cache, whose keys have its version.
    ///
    /// # Errors
    /// Where there is none.
    pub(crate) fn nvrtc(&self) -> Result<&Nvrtc> {
        let nvrtc = self.nvrtc.get_or_init(|| Nvrtc::load(self.nvrtc_path.as_deref()));
        nvrtc.as_ref().map_err(Clone::clone)
    }

    /// The cubin of a unit, from the cache or the compiler.
    fn cubin(&self, unit: Unit) -> Result<Vec<u8>> {
        cubin(self.nvrtc()?, &self.cache, unit, &self.context.caps.architecture())
    }

    /// Compiles and loads what is missing, several units at once.
    pub(crate) fn load(&self, units: &BTreeSet<Unit>) -> Result<()> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<Unit> =
            units.iter().copied().filter(|unit| !loaded.modules.contains_key(unit)).collect();
        let threads = thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        let next = std::sync::atomic::AtomicUsize::new(0);
        let cubins = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(&unit) = missing.get(at) else { return };
                        let cubin = self.cubin(unit);
                        let mut cubins = cubins.lock().unwrap_or_else(PoisonError::into_inner);
                        cubins.push((unit, cubin));
                    }
                });
            }
        });
        for (unit, cubin) in cubins.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let cubin = cubin?;
            let entered = self.context.enter()?;
            let mut module = ptr::null_mut();
            // SAFETY: the bytes are an ELF image, which has its length inside.
            let status =
                unsafe { (entered.driver.module_load)(&mut module, cubin.as_ptr().cast()) };
            entered.driver.check(&format!("cuModuleLoadData of {unit}"), status)?;
            loaded.modules.insert(unit, module);
        }
        Ok(())
    }

    /// A kernel of a unit that is loaded, allowed that much dynamic shared memory.
    pub(crate) fn function(&self, unit: Unit, name: &str, shared: u32) -> Result<Handle> {
        /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
        const DYNAMIC_SHARED: i32 = 8;
        /// `CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT`, in percent.
        const CARVEOUT: i32 = 9;
        /// Dynamic shared memory that needs no permission.
        const FREE: i32 = 48 << 10;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let entered = self.context.enter()?;
        let set = |function, attribute, value| {
            // SAFETY: a live function.
            let status = unsafe { (entered.driver.function_set)(function, attribute, value) };
            entered.driver.check(&format!("attribute {attribute} of kernel {name}"), status)
        };
        let key = (unit, name.to_owned());
        let (function, allowed) = match loaded.functions.get(&key) {
            Some(known) => *known,
            None => {
                let module = loaded.modules.get(&unit);
                let module = *module.ok_or_else(|| error(format!("{unit} is not loaded")))?;
                let text = CString::new(name).map_err(|_| error("a NUL byte in a name"))?;
                let mut function = ptr::null_mut();
                // SAFETY: a live module and a string that ends in NUL.
                let status = unsafe {
                    (entered.driver.module_function)(&mut function, module, text.as_ptr())
                };
                entered.driver.check(&format!("kernel {name} of {unit}"), status)?;
                // A processor divides its memory anew only when it is idle: kernels that are to
                // run side by side must ask for one division. Staged rows leave room for weights.
                if unit != Unit::Norms || shared == 0 {
                    set(function, CARVEOUT, 100)?;
                }
                (function, FREE)
            }
        };
        let limit = self.context.caps.shared.min(shared) as i32;
        if limit > allowed {
            set(function, DYNAMIC_SHARED, limit)?;
        }
        loaded.functions.insert(key, (function, allowed.max(limit)));
        Ok(function)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Ok(entered) = self.context.enter() {
            for module in loaded.modules.values() {
                // SAFETY: loaded above, unloaded once; no graph that uses it is left.
                unsafe { (entered.driver.module_unload)(*module) };
            }
        }
    }
}

/// The cubin of a unit, from the cache or the compiler.
pub(crate) fn cubin(
    nvrtc: &Nvrtc,
    cache: &Cache,
    unit: Unit,
    architecture: &str,
) -> Result<Vec<u8>> {
    let (name, source) = (unit.to_string(), unit.source());
    let version = nvrtc.version().map(i32::to_le_bytes).concat();
    let key = hash(&[source.as_bytes(), architecture.as_bytes(), &version]);
    if let Some(cubin) = cache.get(&name, key) {
        return Ok(cubin);
    }
    let cubin = nvrtc.compile(&name, &source, architecture)?;
    cache.put(&name, key, &cubin);
    Ok(cubin)
}
