//! What the kernels of both packages share.

use std::error::Error;
use std::path::PathBuf;

use msl_host::{
    Binding, Buffer, CompileOptions, Compiler, Config, ConstantValue, Dispatch, FunctionConstants,
    Library, RunOptions,
};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Compiles sources of the folder and counts what passed.
pub(crate) struct Runner {
    folder: PathBuf,
    compiler: Compiler,
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Runner {
    pub(crate) fn new(folder: PathBuf, cache: Option<PathBuf>) -> Outcome<Self> {
        let compiler = Compiler::new(Config { cache, ..Config::default() })?;
        Ok(Runner { folder, compiler, passed: 0, failed: 0 })
    }

    /// Compiles the named kernels of a file.
    pub(crate) fn library(&self, file: &str, functions: &[&str]) -> Outcome<Library> {
        let source = std::fs::read_to_string(self.folder.join(file))?;
        let functions = Some(functions.iter().map(|name| name.to_string()).collect());
        let macros = vec![("GGML_METAL_USE_BF16".into(), "1".into())];
        Ok(self.compiler.compile_with(&source, &CompileOptions { functions, macros })?)
    }

    /// Counts and prints the largest error of a kernel.
    pub(crate) fn report(&mut self, name: &str, outcome: Outcome<f32>, bound: f32) {
        let (word, text) = match outcome {
            Ok(error) if error <= bound => ("ok    ", format!("largest error {error:e}")),
            Ok(error) => ("FAILED", format!("largest error {error:e}, bound {bound:e}")),
            Err(error) => ("FAILED", error.to_string()),
        };
        if word == "FAILED" {
            self.failed += 1;
        } else {
            self.passed += 1;
        }
        println!("{word}  {name}: {text}");
    }
}

/// The bytes of a struct with the layout that both C++ and MSL give it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pack(Vec<u8>);

impl Pack {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend(bytes);
        self
    }

    pub(crate) fn i16s(self, values: &[i16]) -> Self {
        values.iter().fold(self, |pack, value| pack.put(&value.to_ne_bytes()))
    }

    pub(crate) fn i32s(self, values: &[usize]) -> Self {
        values.iter().fold(self, |pack, &value| pack.put(&(value as i32).to_ne_bytes()))
    }

    pub(crate) fn u64s(self, values: &[usize]) -> Self {
        values.iter().fold(self, |pack, &value| pack.put(&(value as u64).to_ne_bytes()))
    }

    pub(crate) fn f32s(self, values: &[f32]) -> Self {
        values.iter().fold(self, |pack, value| pack.put(&value.to_ne_bytes()))
    }

    /// The whole, padded to 8 bytes.
    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0
    }
}

/// An argument; its place in the list is its index.
pub(crate) enum Argument<'a> {
    Bytes(Vec<u8>),
    Memory(&'a Buffer),
    Nothing,
}

/// One launch of a kernel.
pub(crate) struct Launch<'a> {
    pub(crate) groups: [usize; 3],
    pub(crate) threads: [usize; 3],
    pub(crate) arguments: Vec<Argument<'a>>,
    /// Bytes of threadgroup memory 0, 1, ...
    pub(crate) shared: &'a [usize],
    pub(crate) constants: &'a [(u32, ConstantValue)],
    /// Off where a kernel lets several threads write one value to one place.
    pub(crate) detect_conflicts: bool,
}

impl Default for Launch<'_> {
    fn default() -> Self {
        Launch {
            groups: [1; 3],
            threads: [32, 1, 1],
            arguments: Vec::new(),
            shared: &[],
            constants: &[],
            detect_conflicts: true,
        }
    }
}

impl Launch<'_> {
    /// Runs under three orders of threads.
    pub(crate) fn run(&self, library: &Library, name: &str) -> Outcome<()> {
        let constants = self
            .constants
            .iter()
            .fold(FunctionConstants::new(), |all, &(index, value)| all.set(index, value));
        let function = library.function(name, &constants)?;
        for seed in 0..3 {
            let detect_conflicts = self.detect_conflicts;
            let mut dispatch = Dispatch::threadgroups(
                self.groups.map(|n| n as u32),
                self.threads.map(|n| n as u32),
            )
            .options(RunOptions { seed, detect_conflicts, ..RunOptions::default() });
            for (index, argument) in self.arguments.iter().enumerate() {
                dispatch.bindings.extend(match argument {
                    Argument::Bytes(bytes) => Some(Binding::bytes(index as u32, bytes)),
                    Argument::Memory(buffer) => Some(Binding::buffer(index as u32, buffer, 0)),
                    Argument::Nothing => None,
                });
            }
            for (index, &bytes) in self.shared.iter().enumerate() {
                dispatch = dispatch.threadgroup(index as u32, bytes);
            }
            function.dispatch(&dispatch)?;
        }
        Ok(())
    }
}

/// Values between -0.9 and 1.1 that do not repeat soon.
pub(crate) fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + 11 + i / 101 * 13) % 101) as f32 / 50.0 - 0.9).collect()
}

/// The largest difference, infinite where a value is not a number.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f32 {
    let differences = got.iter().zip(want).map(|(a, b)| {
        let difference = (a - b).abs();
        if difference.is_nan() { f32::INFINITY } else { difference }
    });
    if got.len() == want.len() { differences.fold(0.0, f32::max) } else { f32::INFINITY }
}

/// Bits of a half, to nearest even; the tests use values in its normal range, and zero.
pub(crate) fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let rest = bits & 0x7fff_ffff;
    if rest < 0x3880_0000 {
        return sign;
    }
    sign | ((rest - 0x3800_0000 + 0xfff + (rest >> 13 & 1)) >> 13) as u16
}

/// The value of a half in its normal range, or zero.
pub(crate) fn from_half(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    f32::from_bits(sign | if rest == 0 { 0 } else { (rest << 13) + 0x3800_0000 })
}

/// Bits of a bfloat, to nearest even.
pub(crate) fn bfloat(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The value of a bfloat.
pub(crate) fn from_bfloat(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Formats of 16 bits and f32, as buffers are filled and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    /// A buffer of the values, and the values it holds.
    pub(crate) fn buffer(self, values: &[f32]) -> Outcome<(Buffer, Vec<f32>)> {
        Ok(match self {
            Format::F32 => (Buffer::from_slice(values)?, values.to_vec()),
            Format::F16 => {
                let bits: Vec<u16> = values.iter().map(|&v| half(v)).collect();
                (Buffer::from_slice(&bits)?, bits.iter().map(|&b| from_half(b)).collect())
            }
            Format::Bf16 => {
                let bits: Vec<u16> = values.iter().map(|&v| bfloat(v)).collect();
                (Buffer::from_slice(&bits)?, bits.iter().map(|&b| from_bfloat(b)).collect())
            }
        })
    }

    pub(crate) fn empty(self, count: usize) -> Outcome<Buffer> {
        Ok(Buffer::new(count * if self == Format::F32 { 4 } else { 2 })?)
    }

    pub(crate) fn read(self, buffer: &Buffer) -> Outcome<Vec<f32>> {
        Ok(match self {
            Format::F32 => buffer.to_vec::<f32>()?,
            Format::F16 => buffer.to_vec::<u16>()?.into_iter().map(from_half).collect(),
            Format::Bf16 => buffer.to_vec::<u16>()?.into_iter().map(from_bfloat).collect(),
        })
    }
}

/// `softmax(scale * q k^T + bias) v` for one head; `bias` is `[queries, keys]` or empty.
pub(crate) fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    d: usize,
    bias: &[f32],
    scale: f32,
) -> Vec<f32> {
    let keys = k.len() / d;
    let mut out = Vec::with_capacity(q.len());
    for (row, query) in q.chunks(d).enumerate() {
        let scores: Vec<f32> = (0..keys)
            .map(|key| {
                let dot: f32 = query.iter().zip(&k[key * d..]).map(|(a, b)| a * b).sum();
                dot * scale + bias.get(row * keys + key).copied().unwrap_or(0.0)
            })
            .collect();
        let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|s| (s - most).exp()).collect();
        let sum: f32 = weights.iter().sum();
        out.extend((0..d).map(|i| {
            weights.iter().enumerate().map(|(key, w)| w * v[key * d + i]).sum::<f32>() / sum
        }));
    }
    out
}

/// `softmax` of a row.
pub(crate) fn softmax(row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|x| (x - most).exp()).sum();
    row.iter().map(|x| (x - most).exp() / sum).collect()
}
