//! How the device holds block-quantised weights: the bits of GGUF blocks sorted into four planes of
//! the same total size, so that a thread reads codes 16 bytes at a time.
//!
//! `kernels/weights.cuh` reads them, `kernels/pack.cu` makes them.

use kiln_core::DType;

/// Planes start at multiples of this.
const ALIGNMENT: usize = 16;

/// Values counted together: a block of the smaller formats.
pub(crate) const BLOCK: usize = 32;

/// The layout of a matrix in planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planes {
    pub(crate) dtype: DType,
    /// Rows, all outer axes together.
    pub(crate) rows: usize,
    /// Values of a row.
    pub(crate) row_values: usize,
}

/// Addresses of the four planes, from a row on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaneAddresses {
    pub(crate) q: u64,
    pub(crate) h: u64,
    pub(crate) s: u64,
    pub(crate) d: u64,
}

impl Planes {
    /// The layout for a matrix of a block-quantised type.
    pub(crate) fn new(dtype: DType, rows: usize, row_values: usize) -> Option<Self> {
        dtype.is_quantized().then_some(Self { dtype, rows, row_values })
    }

    /// Blocks of 32 values in a row.
    pub(crate) fn row_blocks(&self) -> usize {
        self.row_values / BLOCK
    }

    /// Bytes of each plane for 256 values: codes, high bits, scales of 32, scales of 256.
    pub(crate) const fn per_256(dtype: DType) -> [usize; 4] {
        match dtype {
            DType::Q4_0 | DType::Iq4Nl => [128, 0, 16, 0],
            DType::Q4_1 => [128, 0, 32, 0],
            DType::Q5_0 => [128, 32, 16, 0],
            DType::Q5_1 => [128, 32, 32, 0],
            DType::Q8_0 => [128, 128, 16, 0],
            DType::Q2K => [64, 0, 16, 4],
            DType::Q3K => [64, 32, 12, 2],
            DType::Q4K => [128, 0, 0, 16],
            DType::Q5K => [128, 32, 0, 16],
            DType::Q6K => [128, 64, 16, 2],
            DType::Iq4Xs => [128, 0, 0, 8],
            DType::F32 | DType::F16 | DType::BF16 | DType::U32 | DType::U8 => [0; 4],
        }
    }

    /// Bytes of all planes with their padding.
    pub(crate) fn bytes(&self) -> usize {
        self.starts(self.rows * self.row_blocks())[4]
    }

    /// Where the planes of that many blocks start, and where the last ends.
    fn starts(&self, blocks: usize) -> [usize; 5] {
        let mut starts = [0; 5];
        for (plane, bytes) in Self::per_256(self.dtype).into_iter().enumerate() {
            let size = (blocks * bytes).div_ceil(8).next_multiple_of(ALIGNMENT);
            starts[plane + 1] = starts[plane] + size;
        }
        starts
    }

    /// The planes of a matrix at `base`, from row `row` on.
    pub(crate) fn addresses(&self, base: u64, row: usize) -> PlaneAddresses {
        let starts = self.starts(self.rows * self.row_blocks());
        let skipped = row * self.row_blocks();
        let per_256 = Self::per_256(self.dtype);
        let at = |plane: usize| base + (starts[plane] + skipped * per_256[plane] / 8) as u64;
        PlaneAddresses { q: at(0), h: at(1), s: at(2), d: at(3) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_have_the_bits_of_the_blocks() {
        for dtype in DType::QUANTIZED {
            let sum: usize = Planes::per_256(dtype).iter().sum();
            assert_eq!(sum, dtype.block_bytes() * 256 / dtype.block_len(), "{dtype}");
        }
    }

    #[test]
    fn padding_is_small() {
        for dtype in DType::QUANTIZED {
            let planes = Planes::new(dtype, 3, 768).unwrap();
            let bytes = dtype.row_bytes(3 * 768).unwrap();
            assert!(planes.bytes() >= bytes && planes.bytes() < bytes + 4 * ALIGNMENT, "{dtype}");
        }
        assert_eq!(Planes::new(DType::F16, 1, 1), None);
    }

    #[test]
    fn rows_start_inside_their_planes() {
        let planes = Planes::new(DType::Q6K, 4, 512).unwrap();
        let first = planes.addresses(1 << 20, 0);
        let third = planes.addresses(1 << 20, 2);
        assert_eq!(third.q - first.q, 2 * 16 * 16);
        assert_eq!(third.h - first.h, 2 * 16 * 8);
        assert_eq!(third.s - first.s, 2 * 16 * 2);
        assert_eq!(third.d - first.d, 2 * 2 * 2);
        assert_eq!(first.h - first.q, 4 * 16 * 16);
    }
}
