//! NVRTC, the run-time compiler.

use super::error;
use kiln_core::Result;
use libloading::Library;
use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

type Program = *mut c_void;

macro_rules! functions {
    ($($name:ident = $symbol:literal: $Type:ty,)*) => {
        /// The compiler. Its output depends on its version and the source alone.
        pub struct Nvrtc {
            $($name: $Type,)*
            version: [i32; 2],
            _library: Library,
        }

        impl Nvrtc {
            fn from_library(library: Library) -> Result<Self> {
                // SAFETY: the symbols have these types in the documentation of NVRTC.
                let mut nvrtc = unsafe {
                    Self { $($name: symbol(&library, $symbol)?,)* version: [0; 2], _library: library }
                };
                let [major, minor] = &mut nvrtc.version;
                // SAFETY: two integers to write to.
                let status = unsafe { (nvrtc.get_version)(major, minor) };
                check("nvrtcVersion", status)?;
                Ok(nvrtc)
            }
        }
    };
}

functions! {
    get_version = "nvrtcVersion": unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create = "nvrtcCreateProgram": unsafe extern "C" fn(
        *mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char,
    ) -> c_int,
    destroy = "nvrtcDestroyProgram": unsafe extern "C" fn(*mut Program) -> c_int,
    compile = "nvrtcCompileProgram":
        unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size = "nvrtcGetProgramLogSize": unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log = "nvrtcGetProgramLog": unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size = "nvrtcGetCUBINSize": unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin = "nvrtcGetCUBIN": unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

/// # Safety
/// The symbol has the type `T`.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T> {
    // SAFETY: by the contract.
    let symbol = unsafe { library.get::<T>(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|_| error(format!("NVRTC has no {name}")))
}

fn check(call: &str, status: c_int) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(error(format!("{call}: status {status}"))) }
}

/// Where NVRTC is looked for, the newest first.
const LIBRARIES: [&str; 4] =
    ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_130_0.dll"];

impl Nvrtc {
    /// Loads the library at `path`, or one that the system knows.
    ///
    /// # Errors
    /// Where there is none.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let names: Vec<OsString> = match path {
            Some(path) => vec![path.into()],
            None => LIBRARIES.iter().map(OsString::from).collect(),
        };
        // SAFETY: the initialisers of NVRTC ask nothing of us.
        let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let library = library.ok_or_else(|| {
            let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
            error(format!(
                "NVRTC not found ({}): install the CUDA toolkit or the package nvidia-cuda-nvrtc",
                names.join(", ")
            ))
        })?;
        Self::from_library(library)
    }

    /// Major and minor version.
    pub fn version(&self) -> [i32; 2] {
        self.version
    }

    /// Compiles CUDA C++ to a cubin for an architecture such as `sm_90a`.
    ///
    /// # Errors
    /// The compiler's log.
    pub fn compile(&self, name: &str, source: &str, architecture: &str) -> Result<Vec<u8>> {
        let text = |text: &str| CString::new(text).map_err(|_| error("a NUL byte in a kernel"));
        let (source, file) = (text(source)?, text(name)?);
        let options = [
            text(&format!("--gpu-architecture={architecture}"))?,
            text("--std=c++17")?,
            text("--fmad=false")?,
            text("--device-as-default-execution-space")?,
        ];
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: strings end in NUL and live until the call returns; there are no headers.
        let status = unsafe {
            (self.create)(&mut program, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
        };
        check("nvrtcCreateProgram", status)?;
        // SAFETY: a live program, and as many options as said.
        let status = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let result = if status == 0 {
            self.bytes(program, self.cubin_size, self.cubin)
        } else {
            let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim();
            Err(error(format!("kernel {name} does not compile for {architecture}:\n{log}")))
        };
        // SAFETY: created above, destroyed once.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    fn bytes(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: a live program; the buffer has the size that it asks for.
        unsafe {
            check("the size of a result of NVRTC", size(program, &mut bytes))?;
            let mut out = vec![0u8; bytes];
            check("a result of NVRTC", get(program, out.as_mut_ptr().cast()))?;
            Ok(out)
        }
    }
}
