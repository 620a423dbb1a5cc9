//! The data of one tensor from one type to another, on several threads, a piece at a time.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::thread;

use kiln::DType;
use kiln::quant::{QuantError, dequantize_row, quantize_row};

/// Values that a thread converts at a time: a whole number of blocks of every type.
const CHUNK: usize = 1 << 15;
/// Chunks that are converted before they are written, in order.
const BATCH: usize = 64;

/// How far the encoded values are from those of the source.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Difference {
    pub(super) squares: f64,
    pub(super) largest: f64,
}

impl Difference {
    fn add(&mut self, other: Self) {
        self.squares += other.squares;
        self.largest = self.largest.max(other.largest);
    }
}

/// Why a conversion stopped.
#[derive(Debug)]
pub(super) enum Stop {
    Quant(QuantError),
    Write(io::Error),
    Cancelled,
}

/// What is converted to what, and how.
#[derive(Clone, Copy)]
pub(super) struct Conversion {
    pub(super) from: DType,
    pub(super) to: DType,
    pub(super) threads: usize,
    /// Whether to decode what was encoded and compare.
    pub(super) measure: bool,
}

impl Conversion {
    /// Converts `bytes`, rows of whole blocks of both types, and writes them to `out`. `advance`
    /// gets the number of source bytes that are done, and says whether to go on.
    pub(super) fn run(
        &self,
        bytes: &[u8],
        out: &mut dyn Write,
        mut advance: impl FnMut(usize) -> bool,
    ) -> Result<Difference, Stop> {
        let (source, target) = (chunk_bytes(self.from), chunk_bytes(self.to));
        let mut encoded = vec![0; target * BATCH.min(bytes.len().div_ceil(source))];
        let mut total = Difference::default();
        for (batch, bytes) in bytes.chunks(source * BATCH).enumerate() {
            let values = bytes.len() / self.from.block_bytes() * self.from.block_len();
            let len = values / self.to.block_len() * self.to.block_bytes();
            let encoded = encoded.get_mut(..len).unwrap_or_default();
            let first = batch * BATCH * CHUNK;
            total.add(
                self.batch(bytes, encoded).map_err(|error| Stop::Quant(shifted(error, first)))?,
            );
            out.write_all(encoded).map_err(Stop::Write)?;
            if !advance(bytes.len()) {
                return Err(Stop::Cancelled);
            }
        }
        Ok(total)
    }

    /// Converts the chunks of a batch; the result does not depend on the number of threads.
    fn batch(&self, bytes: &[u8], encoded: &mut [u8]) -> Result<Difference, QuantError> {
        let chunks = bytes.chunks(chunk_bytes(self.from));
        let mut results = vec![Ok(Difference::default()); chunks.len()];
        let threads = self.threads.clamp(1, results.len().max(1));
        let outputs = encoded.chunks_mut(chunk_bytes(self.to)).zip(&mut results);
        let tasks = Mutex::new(chunks.zip(outputs).enumerate());
        let work = || {
            let mut scratch = Scratch::default();
            loop {
                let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((index, (bytes, (encoded, result)))) = task else { break };
                *result = self
                    .chunk(bytes, encoded, &mut scratch)
                    .map_err(|error| shifted(error, index * CHUNK));
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        results.into_iter().try_fold(Difference::default(), |mut total, result| {
            total.add(result?);
            Ok(total)
        })
    }

    fn chunk(
        &self,
        bytes: &[u8],
        encoded: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<Difference, QuantError> {
        let len = bytes.len() / self.from.block_bytes() * self.from.block_len();
        scratch.values.resize(len, 0.0);
        dequantize_row(self.from, bytes, &mut scratch.values)?;
        quantize_row(self.to, &scratch.values, encoded)?;
        if !self.measure {
            return Ok(Difference::default());
        }
        scratch.decoded.resize(len, 0.0);
        dequantize_row(self.to, encoded, &mut scratch.decoded)?;
        let mut difference = Difference::default();
        for (&value, &decoded) in scratch.values.iter().zip(&scratch.decoded) {
            let distance = (f64::from(value) - decoded).abs();
            difference.add(Difference { squares: distance * distance, largest: distance });
        }
        Ok(difference)
    }
}

/// What a thread keeps between chunks.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    decoded: Vec<f64>,
}

const fn chunk_bytes(dtype: DType) -> usize {
    CHUNK / dtype.block_len() * dtype.block_bytes()
}

/// The error with its place counted from `by` values earlier.
fn shifted(error: QuantError, by: usize) -> QuantError {
    match error {
        QuantError::NonFinite { dtype, index, value } => {
            QuantError::NonFinite { dtype, index: index + by, value }
        }
        other => other,
    }
}
