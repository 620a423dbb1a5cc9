//! Quantising a model: GGUF to GGUF, one tensor at a time.
//!
//! A [`FileType`] decides which tensor gets which type. What is not a matrix, or too small or
//! sensitive, keeps the type of the source. Where the rows of a matrix are not whole blocks of its
//! type, another takes its place:
//!
//! | type | in its place |
//! |---|---|
//! | q2_k, q3_k | q4_0 |
//! | q4_k | q5_0 |
//! | q5_k | q5_1 |
//! | q6_k | q8_0 |
//! | iq4_xs | iq4_nl |
//! | any, for rows that are no multiple of 32 | f16 |
//!
//! Metadata is kept; `general.file_type` and `general.quantization_version` are set, and the keys
//! of split files left out. Values are encoded by [`kiln::quant::quantize_row`]: the result is the
//! same on every machine and for any number of threads.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use kiln::format::Gguf;
//! use kiln_models::quantize::{FileType, QuantizeOptions, quantize};
//! let source = Gguf::open("model-f16.gguf")?;
//! let options = QuantizeOptions::new(FileType::Q4KM);
//! quantize(&source, "model-q4_k_m.gguf", &options, |_, _| ControlFlow::Continue(()))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod convert;
mod error;
mod file_type;
mod mix;

use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use kiln::format::{GgmlType, Gguf, GgufWriter, TensorData, TensorInfo};
use kiln::quant::QuantError;
use kiln::{DType, SharedBytes};

use convert::{Conversion, Difference, Stop};
use mix::targets;

pub use error::QuantizeError;
pub use file_type::FileType;

const FILE_TYPE_KEY: &str = "general.file_type";
const VERSION_KEY: &str = "general.quantization_version";
/// The version of the block layouts.
const VERSION: u32 = 2;
/// Keys that describe how the source was split.
const SPLIT_KEYS: [&str; 3] = ["split.no", "split.count", "split.tensors.count"];
/// Bytes copied between two calls of the callback.
const COPIED: usize = 1 << 22;

/// How a file is quantised.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// What the result is made of.
    pub file_type: FileType,
    /// Every matrix in the type of [`FileType::dtype`], the sensitive ones too.
    pub pure: bool,
    /// Whether matrices that are quantised already, in another type than q8_0, may be quantised
    /// again. The errors of both add up.
    pub allow_requantize: bool,
    /// Threads; one per core where `None`.
    pub threads: Option<usize>,
    /// Whether to decode every encoded tensor and note its error.
    pub measure: bool,
}

impl QuantizeOptions {
    /// The mix of `file_type`, on all cores, without measuring.
    pub fn new(file_type: FileType) -> Self {
        let (pure, allow_requantize, measure) = (false, false, false);
        Self { file_type, pure, allow_requantize, threads: None, measure }
    }
}

/// What became of a tensor.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Its type in the source.
    pub from: GgmlType,
    /// Its type in the result.
    pub to: GgmlType,
    /// The type it would have got if its rows were whole blocks of that.
    pub instead_of: Option<DType>,
    /// Bytes in the source.
    pub bytes_from: u64,
    /// Bytes in the result.
    pub bytes_to: u64,
    /// How far its values moved, where that was asked for.
    pub error: Option<TensorError>,
}

/// How far the values of a tensor are from those of the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorError {
    /// Root of the mean of the squared differences.
    pub rmse: f64,
    /// The largest difference.
    pub largest: f64,
}

/// What became of a file.
#[derive(Clone, Debug)]
pub struct QuantizeReport {
    /// Every tensor, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// Bytes of the written file.
    pub file_bytes: u64,
}

/// What happens to one tensor.
struct Step {
    report: TensorReport,
    /// The types, where they differ.
    types: Option<(DType, DType)>,
}

/// Writes `source` with the types of `options` to `path`.
///
/// The whole header is checked first. Data goes to a temporary file beside `path`, which takes its
/// place when it is complete; after an error, and when the callback breaks off, nothing is left.
/// Memory: a few megabytes per thread, besides the mapped source. `progress` gets the bytes of the
/// source that are done and their total.
///
/// # Errors
/// [`QuantizeError`].
pub fn quantize(
    source: &Gguf,
    path: impl AsRef<Path>,
    options: &QuantizeOptions,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<QuantizeReport, QuantizeError> {
    let path = path.as_ref();
    check_target(source, path)?;
    let steps = steps(source, options)?;
    let total = steps.iter().map(|step| step.report.bytes_from).sum();
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(cores);
    let state = RefCell::new(State { progress, done: 0, total, failure: None });
    let errors = RefCell::new(Vec::with_capacity(steps.len()));

    let mut writer = GgufWriter::new();
    insert_metadata(&mut writer, source, options.file_type)?;
    for (info, step) in source.tensors().iter().zip(&steps) {
        let bytes = source.bytes_of(info)?;
        let conversion = step.types.map(|(from, to)| {
            let measure = options.measure;
            Conversion { from, to, threads, measure }
        });
        let (state, errors) = (&state, &errors);
        let data = TensorData::stream(move |out| {
            let difference = state.borrow_mut().tensor(&bytes, conversion, out, info.name())?;
            errors.borrow_mut().push(difference);
            Ok(())
        });
        writer.tensor(info.name(), step.report.to, info.shape(), data)?;
    }
    let written = writer.write(path);
    // What a tensor's own conversion ran into says more than the failed write.
    if let Some(failure) = state.into_inner().failure {
        return Err(failure);
    }
    let file_bytes = written?;
    let mut tensors: Vec<TensorReport> = steps.into_iter().map(|step| step.report).collect();
    if options.measure {
        for (tensor, difference) in tensors.iter_mut().zip(errors.into_inner()) {
            let count = tensor.shape.iter().product::<usize>().max(1) as f64;
            let rmse = (difference.squares / count).sqrt();
            tensor.error = Some(TensorError { rmse, largest: difference.largest });
        }
    }
    Ok(QuantizeReport { tensors, file_bytes })
}

/// The metadata of the source, with the new file type in the place of the old one.
fn insert_metadata<'a>(
    writer: &mut GgufWriter<'a>,
    source: &'a Gguf,
    file_type: FileType,
) -> Result<(), QuantizeError> {
    let mut new = vec![(VERSION_KEY, VERSION), (FILE_TYPE_KEY, file_type.id())];
    for (key, value) in source.metadata().iter() {
        if let Some(index) = new.iter().position(|(replaced, _)| *replaced == key) {
            writer.insert(key, new.swap_remove(index).1)?;
        } else if !SPLIT_KEYS.contains(&key) {
            writer.insert(key, value)?;
        }
    }
    for (key, value) in new {
        writer.insert(key, value)?;
    }
    Ok(())
}

/// Refuses to replace the source by its own result.
fn check_target(source: &Gguf, path: &Path) -> Result<(), QuantizeError> {
    let Ok(target) = path.canonicalize() else { return Ok(()) };
    let is_target = |part: &Path| part.canonicalize().is_ok_and(|part| part == target);
    if source.paths().iter().any(|part| is_target(part)) {
        return Err(QuantizeError::SameFile { path: path.to_owned() });
    }
    Ok(())
}

/// What happens to every tensor, or why it cannot.
fn steps(source: &Gguf, options: &QuantizeOptions) -> Result<Vec<Step>, QuantizeError> {
    let targets = targets(source, options.file_type, options.pure);
    source.tensors().iter().zip(targets).map(|(info, target)| step(info, target, options)).collect()
}

fn step(
    info: &TensorInfo,
    target: Option<mix::Target>,
    options: &QuantizeOptions,
) -> Result<Step, QuantizeError> {
    let from = info.ggml_type();
    let to = target.map_or(from, |target| target.ggml_type);
    let types = match (from.dtype(), to.dtype()) {
        _ if from == to => None,
        (Some(source), Some(result)) => Some((source, result)),
        _ => {
            let tensor = info.name().to_owned();
            return Err(QuantizeError::Unreadable { tensor, got: from, to });
        }
    };
    if let Some((source, _)) = types
        && source.is_quantized()
        && source != DType::Q8_0
        && !options.allow_requantize
    {
        let tensor = info.name().to_owned();
        return Err(QuantizeError::Requantize { tensor, got: from, to });
    }
    // Rows are whole blocks of both types, and the result is smaller than memory can be.
    let bytes_to = info.elements() / to.block_len() * to.block_bytes();
    let report = TensorReport {
        name: info.name().to_owned(),
        shape: info.shape().to_vec(),
        from,
        to,
        instead_of: target.and_then(|target| target.instead_of),
        bytes_from: info.byte_len() as u64,
        bytes_to: bytes_to as u64,
        error: None,
    };
    Ok(Step { report, types })
}

/// How far the file is, and what stopped it.
struct State<F> {
    progress: F,
    done: u64,
    total: u64,
    failure: Option<QuantizeError>,
}

impl<F: FnMut(u64, u64) -> ControlFlow<()>> State<F> {
    /// Notes that so many bytes more are done; false where the callback breaks off.
    fn advance(&mut self, bytes: usize) -> bool {
        self.done += bytes as u64;
        (self.progress)(self.done, self.total).is_continue()
    }

    /// Writes one tensor to `out`. A failure that is not the writer's is kept.
    fn tensor(
        &mut self,
        bytes: &SharedBytes,
        conversion: Option<Conversion>,
        out: &mut dyn Write,
        name: &str,
    ) -> io::Result<Difference> {
        let bytes = bytes.as_ref();
        let result = match conversion {
            Some(conversion) => conversion.run(bytes, out, |bytes| self.advance(bytes)),
            None => self.copy(bytes, out),
        };
        let failure = match result {
            Ok(difference) => return Ok(difference),
            Err(Stop::Write(error)) => return Err(error),
            Err(Stop::Cancelled) => QuantizeError::Cancelled,
            Err(Stop::Quant(QuantError::NonFinite { index, value, .. })) => {
                QuantizeError::NonFinite { tensor: name.to_owned(), index, value }
            }
            Err(Stop::Quant(error)) => QuantizeError::Quant { tensor: name.to_owned(), error },
        };
        self.failure = Some(failure);
        Err(io::Error::other("stopped"))
    }

    fn copy(&mut self, bytes: &[u8], out: &mut dyn Write) -> Result<Difference, Stop> {
        for piece in bytes.chunks(COPIED) {
            out.write_all(piece).map_err(Stop::Write)?;
            if !self.advance(piece.len()) {
                return Err(Stop::Cancelled);
            }
        }
        Ok(Difference::default())
    }
}
