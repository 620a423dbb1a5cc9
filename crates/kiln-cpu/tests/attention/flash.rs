//! Attention over given keys and values.

use crate::{Rng, assert_close, bytes, every_set, run, tensor, values};
use kiln_core::ops::{AttentionLayout, FlashAttention, FlashAttentionBlocks, Op};
use kiln_core::{DType, Device, Shape, Tensor};

/// Attention over given keys.
#[derive(Clone, Copy, Debug)]
struct Flash {
    dims: [usize; 6],
    dtype: DType,
    layout: AttentionLayout,
    causal: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    q_offset: Option<usize>,
    sinks: bool,
    /// Type and rank of the mask.
    mask: Option<(DType, usize)>,
    blocks: Option<[usize; 2]>,
}

const FLASH: Flash = Flash {
    dims: [2, 4, 2, 30, 100, 24],
    dtype: DType::F16,
    layout: AttentionLayout::HeadMajor,
    causal: false,
    window: None,
    softcap: None,
    q_offset: None,
    sinks: false,
    mask: None,
    blocks: None,
};

impl Flash {
    fn run(self, device: &Device) -> Tensor {
        let [batch, heads, kv_heads, q_len, kv_len, dim] = self.dims;
        let mut rng = Rng(5);
        let mut random = |heads: usize, len: usize| {
            let values = rng.values(batch * heads * len * dim);
            tensor(device, self.dtype, self.layout.split([batch, heads, len, dim]), &values)
        };
        let (q, k, v) = (random(heads, q_len), random(kv_heads, kv_len), random(kv_heads, kv_len));
        let sinks = tensor(device, DType::F32, [heads], &rng.values(heads));
        let output = device.tensor(self.dtype, q.shape()).unwrap();
        let mask = self.mask.map(|(dtype, rank)| {
            let shape = [batch, heads, q_len, kv_len];
            let shape = Shape::from_slice(&shape[4 - rank..]).unwrap();
            let values = mask_values(&mut rng, dtype, shape);
            tensor(device, dtype, shape, &values)
        });
        let mut ops: Vec<Op<Tensor>> = Vec::new();
        let blocks = self.blocks.map(|tile| {
            let mask = mask.as_ref().unwrap();
            let leading = if mask.rank() == 4 { [batch, heads] } else { [1, 1] };
            let shape = [leading[0], leading[1], q_len.div_ceil(tile[0]), kv_len.div_ceil(tile[1])];
            let blocks = device.tensor(DType::U8, shape).unwrap();
            ops.push(FlashAttentionBlocks { mask, blocks: &blocks, tile }.into());
            blocks
        });
        ops.push(
            FlashAttention {
                q: &q,
                k: &k,
                v: &v,
                mask: mask.as_ref(),
                blocks: blocks.as_ref(),
                sinks: self.sinks.then_some(&sinks),
                output: &output,
                layout: self.layout,
                scale: 2.0 / (dim as f32).sqrt(),
                causal: self.causal,
                window: self.window,
                softcap: self.softcap,
                q_offset: self.q_offset,
                tile: self.blocks.unwrap_or([1, 1]),
            }
            .into(),
        );
        run(device, ops);
        output
    }

    #[track_caller]
    fn check(self, devices: &[Device]) {
        let expected = values(&self.run(&kiln_reference::device()));
        for device in devices {
            let what = format!("{} {self:?}", device.description());
            assert_close(&self.run(device), &expected, 4e-6, &what);
        }
    }
}

/// Stretches of rows and columns that are masked, open or mixed.
fn mask_values(rng: &mut Rng, dtype: DType, shape: Shape) -> Vec<f32> {
    let masked = if dtype == DType::U8 { 0.0 } else { f32::NEG_INFINITY };
    let open = if dtype == DType::U8 { 1.0 } else { 0.0 };
    let rank = shape.len();
    let [q_len, kv_len] = [shape[rank - 2], shape[rank - 1]];
    (0..shape.values().unwrap())
        .map(|index| {
            let (i, j) = (index / kv_len % q_len, index % kv_len);
            let mixed = rng.below(3);
            match (i / 8 * 5 + j / 24 * 3) % 4 {
                _ if i == 3 => masked,
                0 => masked,
                1 => open,
                _ if mixed == 0 => masked,
                _ if dtype == DType::U8 || mixed == 1 => open,
                _ => rng.below(64) as f32 / 16.0 - 2.0,
            }
        })
        .collect()
}

#[test]
fn flash_lengths_and_layouts() {
    let devices = every_set(2);
    for q_len in [1, 5, 6, 7, 63, 64, 100] {
        for kv_len in [1, 3, 16, 64, 65, 130] {
            for layout in [AttentionLayout::HeadMajor, AttentionLayout::SeqMajor] {
                for causal in [false, true] {
                    let q_offset = (q_len > kv_len).then_some(0);
                    let dims = [2, 3, 1, q_len, kv_len, 16];
                    Flash { dims, layout, causal, q_offset, ..FLASH }.check(&devices);
                }
            }
        }
    }
}

#[test]
fn flash_dimensions_and_types() {
    let devices = every_set(1);
    for dim in [8, 40, 64, 80, 96, 128, 256, 512] {
        for dtype in [DType::F16, DType::BF16] {
            let dims = [1, 2, 1, 20, 70, dim];
            Flash { dims, dtype, causal: true, ..FLASH }.check(&devices);
        }
    }
}

#[test]
fn flash_options() {
    let devices = every_set(1);
    for window in [None, Some(1), Some(40)] {
        for q_offset in [None, Some(0), Some(33), Some(120)] {
            for causal in [false, true] {
                for (softcap, sinks) in [(None, false), (Some(0.8), true), (None, true)] {
                    let case = Flash { window, q_offset, causal, softcap, sinks, ..FLASH };
                    case.check(&devices);
                }
            }
        }
    }
}

#[test]
fn flash_masks_with_and_without_their_maps() {
    let devices = every_set(2);
    for dtype in [DType::F16, DType::BF16] {
        for mask_type in [DType::U8, dtype] {
            for rank in [2, 4] {
                for causal in [false, true] {
                    let mask = Some((mask_type, rank));
                    let case = Flash { dtype, mask, causal, ..FLASH };
                    case.check(&devices);
                    for tile in [[1, 1], [8, 24], [16, 64], [7, 100], [usize::MAX, usize::MAX]] {
                        for device in &devices {
                            let with = Flash { blocks: Some(tile), ..case }.run(device);
                            let same = bytes(&with) == bytes(&case.run(device));
                            assert!(same, "{} {case:?} {tile:?}", device.description());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn maps_of_masks() {
    let reference = kiln_reference::device();
    for device in every_set(1) {
        for dtype in [DType::U8, DType::F16, DType::BF16] {
            for tile in [[1, 1], [3, 5], [8, 24], [64, 1000]] {
                for shape in [Shape::from([40, 90]), Shape::from([2, 3, 17, 50])] {
                    let mut values = mask_values(&mut Rng(9), dtype, shape);
                    values[0] = if dtype == DType::U8 { 200.0 } else { -0.0 };
                    let rank = shape.len();
                    let leading = if rank == 4 { [shape[0], shape[1]] } else { [1, 1] };
                    let [rows, columns] = [shape[rank - 2], shape[rank - 1]];
                    let map = |device: &Device| {
                        let mask = tensor(device, dtype, shape, &values);
                        let [rows, columns] = [rows.div_ceil(tile[0]), columns.div_ceil(tile[1])];
                        let shape = [leading[0], leading[1], rows, columns];
                        let blocks = device.tensor(DType::U8, shape).unwrap();
                        let op = FlashAttentionBlocks { mask: &mask, blocks: &blocks, tile };
                        run(device, vec![op.into()]);
                        bytes(&blocks)
                    };
                    assert_eq!(map(&device), map(&reference));
                }
            }
        }
    }
}

#[test]
fn causal_flash_attention_in_chunks_gives_the_bits_of_one_piece() {
    for device in every_set(2) {
        let [heads, kv_heads, len, dim] = [6, 2, 150, 32];
        let mut rng = Rng(3);
        let mut random = |heads: usize| {
            tensor(&device, DType::F16, [1, len, heads, dim], &rng.values(len * heads * dim))
        };
        let (q, k, v) = (random(heads), random(kv_heads), random(kv_heads));
        let attend = |start: usize, end: usize| {
            let output = device.tensor(DType::F16, [1, end - start, heads, dim]).unwrap();
            let part = |x: &Tensor, start: usize| x.slice(1, start..end).unwrap();
            let op = FlashAttention {
                q: &part(&q, start),
                k: &part(&k, 0),
                v: &part(&v, 0),
                mask: None,
                blocks: None,
                sinks: None,
                output: &output,
                layout: AttentionLayout::SeqMajor,
                scale: 0.2,
                causal: true,
                window: Some(90),
                softcap: None,
                q_offset: None,
                tile: [1, 1],
            };
            run(&device, vec![op.into()]);
            bytes(&output)
        };
        let whole = attend(0, len);
        for chunks in [&[0, 1, 2, 50, 150][..], &[0, 64, 128, 150], &[0, 77, 150]] {
            let parts: Vec<u8> =
                chunks.windows(2).flat_map(|ends| attend(ends[0], ends[1])).collect();
            assert!(parts == whole, "{} {chunks:?}", device.description());
        }
    }
}
