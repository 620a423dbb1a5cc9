//! Attention. Masked keys take no part: neither their scores nor their values are looked at.

use crate::array::{Array, dot};
use crate::view::View;
use kiln_core::ops::{CachedAttention, FlashAttention, FlashAttentionBlocks};
use kiln_core::{DType, Result};

/// A key that a query attends to: its score and its value.
type Open<'a> = (f64, &'a [f64]);

/// `scale * q k^T`, softly limited.
fn score(q: &[f64], k: &[f64], scale: f32, softcap: Option<f32>) -> f64 {
    let s = f64::from(scale) * dot(q, k);
    match softcap.map(f64::from) {
        Some(cap) => cap * (s / cap).tanh(),
        None => s,
    }
}

/// The mean of the values weighted by the softmax of the scores; zeros without any key. A sink
/// adds to the denominator only.
fn softmax_mean(keys: &[Open], sink: Option<f64>, output: &mut [f64]) {
    output.fill(0.0);
    if keys.is_empty() {
        return;
    }
    let sink = sink.unwrap_or(f64::NEG_INFINITY);
    let max = keys.iter().fold(sink, |max, &(score, _)| max.max(score));
    let mut sum = (sink - max).exp();
    for (score, value) in keys {
        let weight = (score - max).exp();
        sum += weight;
        for (output, v) in output.iter_mut().zip(*value) {
            *output += weight * v;
        }
    }
    for output in output {
        *output /= sum;
    }
}

/// Whether a key is `window` or more before the query.
fn outside_window(window: Option<usize>, query: usize, key: usize) -> bool {
    window.is_some_and(|window| query >= key && query - key >= window)
}

fn load_sinks(sinks: &Option<View>) -> Result<Option<Vec<f64>>> {
    sinks.as_ref().map(|sinks| Ok(sinks.load()?.data)).transpose()
}

pub(super) fn flash_attention(op: &FlashAttention<View>) -> Result<()> {
    let (q, k, v) = (op.q.load()?, op.k.load()?, op.v.load()?);
    let sinks = load_sinks(&op.sinks)?;
    let mask = op.mask.as_ref().map(Mask::load).transpose()?;
    let dims = |x: &Array| op.layout.split([x.shape[0], x.shape[1], x.shape[2], x.shape[3]]);
    let [batch, heads, q_len, _] = dims(&q);
    let [_, kv_heads, kv_len, _] = dims(&k);
    let q_offset = op.q_offset.unwrap_or(kv_len.saturating_sub(q_len));
    let at = |b: usize, h: usize, i: usize| {
        let [b, x, y, _] = op.layout.split([b, h, i, 0]);
        [b, x, y]
    };

    let mut output = Array::zeros(q.shape);
    for b in 0..batch {
        for h in 0..heads {
            let kv_head = h / (heads / kv_heads);
            for i in 0..q_len {
                let position = q_offset + i;
                let mut keys: Vec<Open> = Vec::new();
                for j in 0..kv_len {
                    let bias = mask.as_ref().map_or(0.0, |mask| mask.bias(b, h, i, j));
                    let masked = bias == f64::NEG_INFINITY
                        || (op.causal && j > position)
                        || outside_window(op.window, position, j);
                    if !masked {
                        let at_key = at(b, kv_head, j);
                        let s = score(q.row(&at(b, h, i)), k.row(&at_key), op.scale, op.softcap);
                        keys.push((s + bias, v.row(&at_key)));
                    }
                }
                let sink = sinks.as_ref().map(|sinks| sinks[h]);
                softmax_mean(&keys, sink, output.row_mut(&at(b, h, i)));
            }
        }
    }
    op.output.store(&output)
}

/// A mask as what it adds to the scores: of rank 2 for all, or of rank 4.
struct Mask(Array);

impl Mask {
    fn load(view: &View) -> Result<Self> {
        let values = view.load()?;
        if view.dtype() != DType::U8 {
            return Ok(Self(values));
        }
        Ok(Self(values.map(|attend| if attend == 0.0 { f64::NEG_INFINITY } else { 0.0 })))
    }

    fn bias(&self, b: usize, h: usize, i: usize, j: usize) -> f64 {
        match self.0.shape.len() {
            2 => self.0.row(&[i])[j],
            _ => self.0.row(&[b, h, i])[j],
        }
    }
}

pub(super) fn flash_attention_blocks(op: &FlashAttentionBlocks<View>) -> Result<()> {
    let mask = Mask::load(&op.mask)?;
    let rank = op.mask.shape().len();
    let [q_len, kv_len] = [op.mask.extent(rank - 2), op.mask.extent(rank - 1)];
    let [batch, heads] = [op.blocks.extent(0), op.blocks.extent(1)];
    let [rows, columns] = op.tile;
    let mut blocks = Array::zeros(op.blocks.shape());
    for b in 0..batch {
        for h in 0..heads {
            for row in 0..op.blocks.extent(2) {
                for column in 0..op.blocks.extent(3) {
                    let (mut all_masked, mut all_open) = (true, true);
                    for i in row * rows..q_len.min((row + 1) * rows) {
                        for j in column * columns..kv_len.min((column + 1) * columns) {
                            let bias = mask.bias(b, h, i, j);
                            all_masked &= bias == f64::NEG_INFINITY;
                            all_open &= bias == 0.0;
                        }
                    }
                    blocks.row_mut(&[b, h, row])[column] = match (all_masked, all_open) {
                        (true, _) => 0.0,
                        (_, false) => 1.0,
                        (_, true) => 2.0,
                    };
                }
            }
        }
    }
    op.blocks.store(&blocks)
}

pub(super) fn cached_attention(op: &CachedAttention<View>) -> Result<()> {
    let q = op.q.load()?;
    let [tokens, heads] = [q.shape[0], q.shape[1]];
    let [kv_heads, capacity] = [op.k_cache.extent(0), op.k_cache.extent(1)];
    let kv_len = op.kv_len.load_indices()?[0];
    if kv_len < tokens || (!op.ring && kv_len > capacity) {
        return op.output.store(&q.map(|_| f64::NAN));
    }
    let sinks = load_sinks(&op.sinks)?;
    // A linear cache holds all positions, as capacity >= kv_len.
    let first = kv_len.saturating_sub(capacity);

    let mut output = Array::zeros(q.shape);
    for kv_head in 0..kv_heads {
        let rows = |cache: &View| -> Result<Vec<Vec<f64>>> {
            (first..kv_len).map(|p| cache.load_row(&[kv_head, p % capacity])).collect()
        };
        let (k, v) = (rows(&op.k_cache)?, rows(&op.v_cache)?);
        for h in (0..heads).filter(|h| h / (heads / kv_heads) == kv_head) {
            for i in 0..tokens {
                let position = kv_len - tokens + i;
                let open = (first..=position).filter(|&p| !outside_window(op.window, position, p));
                let keys: Vec<Open> = open
                    .map(|p| {
                        let s = score(q.row(&[i, h]), &k[p - first], op.scale, op.softcap);
                        (s, &v[p - first][..])
                    })
                    .collect();
                let sink = sinks.as_ref().map(|sinks| sinks[h]);
                softmax_mean(&keys, sink, output.row_mut(&[i, h]));
            }
        }
    }
    op.output.store(&output)
}
