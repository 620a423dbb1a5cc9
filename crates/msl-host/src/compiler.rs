//! Finds the C++ compiler and turns MSL source into libraries.

mod process;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::library::Image;
use crate::translate::{self, Translation};
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
}

impl Default for Config {
    /// The compiler of the path, no cache, level 1.
    fn default() -> Self {
        Config { compiler: None, cache: None, optimization: 1 }
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
    program: PathBuf,
    /// First line of `--version`.
    version: String,
    config: Config,
    invocations: AtomicU64,
}

/// The headers and the runtime, by name.
const SHIM: [(&str, &str); 8] = [
    ("msl.h", include_str!("../shim/msl.h")),
    ("msl_runtime.h", include_str!("../shim/msl_runtime.h")),
    ("msl_types.h", include_str!("../shim/msl_types.h")),
    ("msl_vec.h", include_str!("../shim/msl_vec.h")),
    ("msl_math.h", include_str!("../shim/msl_math.h")),
    ("msl_simd.h", include_str!("../shim/msl_simd.h")),
    ("msl_atomic.h", include_str!("../shim/msl_atomic.h")),
    ("msl_matrix.h", include_str!("../shim/msl_matrix.h")),
];
const RUNTIME: [(&str, &str); 4] = [
    ("state.h", include_str!("../runtime/state.h")),
    ("checks.cpp", include_str!("../runtime/checks.cpp")),
    ("fibers.cpp", include_str!("../runtime/fibers.cpp")),
    ("runtime.cpp", include_str!("../runtime/runtime.cpp")),
];

impl Compiler {
    /// Finds the compiler.
    pub fn new(config: Config) -> Result<Self, CompileError> {
        if !cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
            return Err(CompileError::Platform);
        }
        let tried: Vec<PathBuf> = match &config.compiler {
            Some(path) => vec![path.clone()],
            None => vec!["g++".into(), "clang++".into()],
        };
        for program in &tried {
            if let Some(version) = process::version(program) {
                let (program, invocations) = (program.clone(), AtomicU64::new(0));
                return Ok(Compiler { program, version, config, invocations });
            }
        }
        Err(CompileError::NoCompiler { tried })
    }

    /// The compiler's name and version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How often this value started the C++ compiler.
    pub fn invocations(&self) -> u64 {
        self.invocations.load(Ordering::Relaxed)
    }

    /// Translates and compiles all kernels of `source`, or loads them from the cache.
    ///
    /// # Errors
    ///
    /// [`CompileError`] with the line of the source: constructs that are not supported, errors of the C++
    /// compiler, files that cannot be written.
    pub fn compile(&self, source: &str) -> Result<Library, CompileError> {
        self.compile_with(source, &CompileOptions::default())
    }

    /// Translates and compiles `source`, or loads it from the cache.
    ///
    /// # Errors
    ///
    /// As [`Compiler::compile`], and [`CompileError::NoSuchFunction`].
    pub fn compile_with(
        &self,
        source: &str,
        options: &CompileOptions,
    ) -> Result<Library, CompileError> {
        let flags = self.flags();
        let common = self.key(&flags, &[]);
        let macros = format!("{:?}", options.macros);
        let functions = format!("{:?}", options.functions);
        let prepared_key = self.key(&flags, &[source, &macros]);
        let key = self.key(&flags, &[source, &macros, &functions]);
        let (root, folder) = match &self.config.cache {
            Some(root) => (root.clone(), None),
            None => {
                let folder =
                    tempfile::tempdir().map_err(|e| process::io("making a temporary folder", e))?;
                (folder.path().to_path_buf(), Some(folder))
            }
        };
        let tools = self.tools(&root, &common, &flags)?;
        // The preprocessed text is kept, as it is what the translation is made from.
        let text_path = root.join(format!("{prepared_key:032x}.ii"));
        let text = match std::fs::read_to_string(&text_path) {
            Ok(text) => text,
            Err(_) => {
                let text = self.preprocess(source, options)?;
                process::write(&root, &text_path, text.as_bytes())?;
                text
            }
        };
        let translation = translate::translate(&text, options.functions.as_deref())?;
        if let Some(missing) = options
            .functions
            .iter()
            .flatten()
            .find(|name| !translation.functions.iter().any(|f| f.name == **name))
        {
            return Err(CompileError::NoSuchFunction { name: missing.clone() });
        }
        let path = root.join(format!("{key:032x}.so"));
        if !path.exists() {
            self.build(&root, &path, &tools, &flags, &translation)?;
        }
        let image = Image::load(&path, folder)?;
        let Translation { functions, optional, constants, guarded, .. } = translation;
        Library::new(functions, optional, constants, guarded, image)
    }

    /// Flags for kernels and runtime alike.
    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = [
            "-std=gnu++17",
            "-fPIC",
            "-fno-exceptions",
            "-fno-rtti",
            "-ffp-contract=off",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-fno-strict-aliasing",
            "-fvisibility=hidden",
            "-fno-stack-protector",
            "-fno-threadsafe-statics",
            "-fwrapv",
            "-fcf-protection=none",
            // A narrowing initialiser is an error of Apple's compiler, and no warning of g++ is shown.
            "-Werror=narrowing",
            "-g1",
        ]
        .map(String::from)
        .to_vec();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("avx2")
            {
                flags.extend(
                    ["-mf16c", "-mfma", "-mavx2", "-mbmi2", "-mlzcnt", "-mpopcnt"]
                        .map(String::from),
                );
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        flags.retain(|flag| !flag.starts_with("-fcf"));
        flags
    }

    /// Flags that put a callback before every access of a kernel.
    fn kernel_flags(&self) -> Vec<String> {
        let mut flags =
            vec![format!("-O{}", self.config.optimization.min(3)), "-fsanitize=thread".into()];
        if self.version.contains("clang") {
            flags.extend(
                ["-mllvm", "-tsan-instrument-func-entry-exit=0", "-fno-builtin-memcpy"]
                    .map(String::from),
            );
        } else {
            flags.extend(
                [
                    "--param=tsan-instrument-func-entry-exit=0",
                    "-fno-tree-loop-distribute-patterns",
                    "-fexcess-precision=16",
                ]
                .map(String::from),
            );
        }
        flags
    }

    fn key(&self, flags: &[String], parts: &[&str]) -> u128 {
        let mut hash = process::Hash::new();
        for part in [self.version.as_str(), &flags.join(" "), &self.kernel_flags().join(" ")] {
            hash.add(part);
        }
        for (name, text) in SHIM.iter().chain(&RUNTIME) {
            hash.add(name);
            hash.add(text);
        }
        parts.iter().for_each(|part| hash.add(part));
        hash.finish()
    }

    /// The folder of headers and the compiled runtime, made where it is missing.
    fn tools(&self, root: &Path, common: &u128, flags: &[String]) -> Result<PathBuf, CompileError> {
        let tools = root.join(format!("{common:032x}"));
        if tools.join("runtime.o").exists() {
            return Ok(tools);
        }
        std::fs::create_dir_all(root)
            .map_err(|e| process::io(&format!("making {}", root.display()), e))?;
        let fresh = tempfile::tempdir_in(root)
            .map_err(|e| process::io("making a folder in the cache", e))?;
        for (name, text) in SHIM.iter().chain(&RUNTIME) {
            process::write(fresh.path(), &fresh.path().join(name), text.as_bytes())?;
        }
        let at = |name: &str| fresh.path().join(name).to_string_lossy().into_owned();
        let mut arguments = flags.to_vec();
        arguments.extend(["-O2", "-c", "-o"].map(String::from));
        arguments.extend([at("runtime.o"), at("runtime.cpp")]);
        self.start(&arguments, None)?;
        match std::fs::rename(fresh.path(), &tools) {
            // Another process may have been faster.
            Err(error) if !tools.join("runtime.o").exists() => {
                Err(process::io(&format!("making {}", tools.display()), error))
            }
            _ => Ok(tools),
        }
    }

    fn preprocess(&self, source: &str, options: &CompileOptions) -> Result<String, CompileError> {
        let mut arguments: Vec<String> = [
            "-E",
            "-x",
            "c++",
            "-std=gnu++17",
            "-undef",
            "-nostdinc",
            "-w",
            "-D__METAL__=1",
            "-D__METAL_VERSION__=310",
            "-D__METAL_MACOS__=1",
            "-D__HAVE_BFLOAT__=1",
            "-D__clang__=1",
        ]
        .map(String::from)
        .to_vec();
        arguments.extend(options.macros.iter().map(|(name, value)| format!("-D{name}={value}")));
        arguments.push("-".into());
        self.start(&arguments, Some(&translate::prepare(source)))
    }

    fn build(
        &self,
        root: &Path,
        path: &Path,
        tools: &Path,
        flags: &[String],
        translation: &Translation,
    ) -> Result<(), CompileError> {
        let fresh = tempfile::tempdir_in(root)
            .map_err(|e| process::io("making a folder in the cache", e))?;
        let at = |name: &str| fresh.path().join(name).to_string_lossy().into_owned();
        process::write(
            fresh.path(),
            &fresh.path().join("kernel.cpp"),
            translation.code.as_bytes(),
        )?;
        let mut arguments = flags.to_vec();
        arguments.extend(self.kernel_flags());
        arguments.push(format!("-I{}", tools.display()));
        arguments.extend(["-c", "-o"].map(String::from));
        arguments.extend([at("kernel.o"), at("kernel.cpp")]);
        self.start(&arguments, None)?;
        let mut arguments: Vec<String> =
            ["-shared", "-fPIC", "-Wl,-z,defs", "-o"].map(String::from).to_vec();
        arguments.extend([at("library.so"), at("kernel.o")]);
        arguments.push(tools.join("runtime.o").to_string_lossy().into_owned());
        arguments.extend(["-lm".into(), "-Wl,--build-id=none".into()]);
        self.start(&arguments, None)?;
        std::fs::rename(fresh.path().join("library.so"), path)
            .map_err(|e| process::io(&format!("writing {}", path.display()), e))
    }

    /// Runs the compiler and gives its standard output.
    fn start(&self, arguments: &[String], input: Option<&str>) -> Result<String, CompileError> {
        self.invocations.fetch_add(1, Ordering::Relaxed);
        process::start(&self.program, arguments, input)
    }
}
