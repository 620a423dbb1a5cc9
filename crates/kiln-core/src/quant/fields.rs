//! Bit fields spread over lanes of bytes: the one rule behind every packing of codes.

/// Byte and shift of field `n`, where groups of `LANES` bytes hold `8 / WIDTH` fields per byte.
const fn locate<const LANES: usize, const WIDTH: usize>(n: usize) -> (usize, usize) {
    let group = LANES * 8 / WIDTH;
    (n / group * LANES + n % LANES, n % group / LANES * WIDTH)
}

/// Field `n` of `bytes`.
pub(super) fn get<const LANES: usize, const WIDTH: usize>(bytes: &[u8], n: usize) -> u8 {
    let (byte, shift) = locate::<LANES, WIDTH>(n);
    (bytes[byte] >> shift) & ((1 << WIDTH) - 1)
}

/// Bytes whose fields hold the low bits of `codes`, in order.
pub(super) fn pack<const LANES: usize, const WIDTH: usize, const BYTES: usize>(
    codes: impl IntoIterator<Item = u8>,
) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (n, code) in codes.into_iter().enumerate() {
        let (byte, shift) = locate::<LANES, WIDTH>(n);
        bytes[byte] |= (code & ((1 << WIDTH) - 1)) << shift;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_the_lanes() {
        assert_eq!(locate::<16, 4>(5), (5, 0));
        assert_eq!(locate::<16, 4>(21), (5, 4));
        assert_eq!(locate::<16, 4>(37), (21, 0));
        assert_eq!(locate::<1, 1>(13), (1, 5));
        assert_eq!(locate::<32, 2>(128 + 96 + 7), (39, 6));
        assert_eq!(locate::<64, 4>(64), (0, 4));
    }

    #[test]
    fn pack_then_get() {
        let bytes: [u8; 64] = pack::<32, 2, 64>((0..256).map(|n| (n * 7 / 3) as u8));
        for n in 0..256 {
            assert_eq!(get::<32, 2>(&bytes, n), (n * 7 / 3) as u8 & 3);
        }
    }
}
