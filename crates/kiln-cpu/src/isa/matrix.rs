//! Units that multiply tiles of 16 rows of 64 bytes, each with the vector instructions beside it.

use super::{LANES, Tiles};

/// Rows of a tile, and columns of a tile of sums.
pub(crate) const TILE: usize = LANES;

/// Values of a row of a tile of bf16: the depth of one product.
pub(crate) const TILE_DEPTH: usize = 32;

/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = 1024;

/// A unit that multiplies tiles of bf16 and sums in f32. Subnormal factors and sums may be taken as zero.
pub(crate) trait MatrixUnit: Copy + Send + Sync + 'static {
    /// The vector instructions of the machine.
    type Vectors: Tiles;

    /// Name for people.
    const NAME: &'static str;

    /// The token, in code that is only reached with one.
    ///
    /// # Safety
    /// The unit is there.
    unsafe fn assume() -> Self;

    fn vectors(self) -> Self::Vectors;

    /// Calls `work` with all instructions enabled, as [`super::Simd::run`].
    fn run<R>(self, work: impl FnOnce() -> R) -> R;

    /// Calls `work` with tiles ready for [`MatrixUnit::multiply`]. Not nested: the inner call would
    /// release the tiles of the outer.
    fn with_tiles<R>(self, work: impl FnOnce() -> R) -> R;

    /// Adds the products of `COLUMNS` tiles of columns, 1 or 2, with two of rows to f32 sums
    /// `[columns][2][16 rows]`, along `len` tiles of the depth. `columns` are activations
    /// `[len][COLUMNS][16 columns][32 values]`, `rows` weights `[len][2][16 pairs of values][16 rows][2]`.
    /// Where `first`, the sums begin with zero, whatever the memory holds.
    ///
    /// # Safety
    /// Inside [`MatrixUnit::with_tiles`], which is not nested; `len` is not zero, the tiles are readable,
    /// and so many sums writable.
    unsafe fn multiply<const COLUMNS: usize>(
        self,
        columns: *const u8,
        rows: *const u8,
        len: usize,
        sums: *mut f32,
        first: bool,
    );

    /// 32 values rounded to bf16, to the nearest, ties to even.
    fn to_bf16(self, values: [F<Self>; 2]) -> B<Self>;

    /// What [`MatrixUnit::pairs`] wants of a group of values of so many bits of 16 rows.
    fn pair_scales(self, bits: u32, scale: F<Self>, minimum: F<Self>) -> PairScales<Self>;

    /// `scale * q + minimum` of four unsigned bytes of each row as bf16: the first two values of each
    /// row, and the last two.
    fn pairs(self, bits: u32, q: B<Self>, scales: &PairScales<Self>) -> [B<Self>; 2];
}

/// Scales of 16 rows, of the first eight and of the last eight, each twice; then minima likewise.
pub(crate) type PairScales<U> = [[F<U>; 2]; 2];

/// 16 f32 of the vectors of a unit.
pub(crate) type F<U> = <<U as MatrixUnit>::Vectors as super::Simd>::F;

/// 64 bytes of the vectors of a unit.
pub(crate) type B<U> = <<U as MatrixUnit>::Vectors as super::Simd>::B;

/// A token of a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Units {
    /// AMX with bf16.
    Amx(super::amx::Amx),
    /// In plain Rust, for tests of what is around the products.
    #[cfg(test)]
    Plain(Plain),
}

/// Evaluates an expression, generic over the token, for a unit.
macro_rules! with_unit {
    ($units:expr, $unit:ident => $work:expr) => {
        match $units {
            $crate::isa::Units::Amx($unit) => $work,
            #[cfg(test)]
            $crate::isa::Units::Plain($unit) => $work,
        }
    };
}
pub(crate) use with_unit;

pub(super) fn name<U: MatrixUnit>(_: U) -> &'static str {
    U::NAME
}

#[cfg(test)]
pub(crate) use plain::Plain;

#[cfg(test)]
mod plain {
    use super::{MatrixUnit, PairScales, TILE, TILE_BYTES, TILE_DEPTH};
    use crate::isa::{LANES, Scalar};
    use half::bf16;

    /// Tiles in plain Rust.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Plain;

    fn bits(value: f32) -> [u8; 2] {
        bf16::from_f32(value).to_le_bytes()
    }

    impl MatrixUnit for Plain {
        type Vectors = Scalar;

        const NAME: &'static str = "plain tiles";

        unsafe fn assume() -> Self {
            Self
        }

        fn vectors(self) -> Scalar {
            Scalar
        }

        fn run<R>(self, work: impl FnOnce() -> R) -> R {
            work()
        }

        fn with_tiles<R>(self, work: impl FnOnce() -> R) -> R {
            work()
        }

        unsafe fn multiply<const COLUMNS: usize>(
            self,
            columns: *const u8,
            rows: *const u8,
            len: usize,
            sums: *mut f32,
            first: bool,
        ) {
            // SAFETY: by the contract.
            let value = |from: *const u8, index: usize| unsafe {
                bf16::from_le_bytes(from.cast::<[u8; 2]>().add(index).read()).to_f32()
            };
            for (column, row) in
                (0..COLUMNS * TILE).flat_map(|column| (0..2 * TILE).map(move |row| (column, row)))
            {
                let mut total = 0.0;
                for tile in 0..len {
                    let of_columns = (tile * COLUMNS + column / TILE) * TILE_BYTES;
                    let columns = columns.wrapping_add(of_columns);
                    let rows = rows.wrapping_add((tile * 2 + row / TILE) * TILE_BYTES);
                    for k in 0..TILE_DEPTH {
                        let x = value(columns, column % TILE * TILE_DEPTH + k);
                        let w = value(rows, (k / 2 * TILE + row % TILE) * 2 + k % 2);
                        total += x * w;
                    }
                }
                // SAFETY: by the contract.
                unsafe {
                    let sum = sums.add(column * 2 * TILE + row);
                    *sum = if first { total } else { *sum + total };
                }
            }
        }

        fn to_bf16(self, values: [[f32; LANES]; 2]) -> [u8; 64] {
            let mut out = [0; 64];
            for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values.as_flattened()) {
                *out = bits(*value);
            }
            out
        }

        fn pair_scales(
            self,
            _: u32,
            scale: [f32; LANES],
            minimum: [f32; LANES],
        ) -> PairScales<Self> {
            let twice = |rows: [f32; LANES]| {
                [0, LANES / 2].map(|first| std::array::from_fn(|lane| rows[first + lane / 2]))
            };
            [twice(scale), twice(minimum)]
        }

        fn pairs(self, _: u32, q: [u8; 64], [scale, minimum]: &PairScales<Self>) -> [[u8; 64]; 2] {
            [0, 2].map(|first| {
                let mut out = [0; 64];
                for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                    let (half, lane) = (i / LANES, i % LANES);
                    let q = f32::from(q[4 * (i / 2) + first + i % 2]);
                    let value = q.mul_add(scale[half][lane], minimum[half][lane]);
                    *out = bits(value);
                }
                out
            })
        }
    }
}
