//! The table: every operation, each file with the cases of one family.

mod argmax;
mod cached_attention;
mod copy;
mod decode;
mod decode_step;
mod elementwise;
mod embed;
mod flash_attention;
mod flash_attention_blocks;
mod gated_matmul;
mod head_norm_rope;
mod kv_append;
mod matmul;
mod matmul_id;
mod moe_route;
mod norms;
mod plans;
mod pool;
mod rejected;
mod sample;
mod softmax;

use crate::bounds::{Bound, Family};
use crate::case::Case;
use crate::program::{Agreement, Broken, Program};
use kiln_core::DType;

/// Every case, in a fixed order.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    norms::add(&mut cases);
    head_norm_rope::add(&mut cases);
    matmul::add(&mut cases);
    gated_matmul::add(&mut cases);
    matmul_id::add(&mut cases);
    flash_attention::add(&mut cases);
    flash_attention_blocks::add(&mut cases);
    cached_attention::add(&mut cases);
    decode::add(&mut cases);
    decode_step::add(&mut cases);
    kv_append::add(&mut cases);
    embed::add(&mut cases);
    elementwise::add(&mut cases);
    copy::add(&mut cases);
    softmax::add(&mut cases);
    argmax::add(&mut cases);
    sample::add(&mut cases);
    moe_route::add(&mut cases);
    pool::add(&mut cases);
    plans::add(&mut cases);
    rejected::add(&mut cases);
    cases.0
}

/// The table while it is made.
struct Cases(Vec<Case>);

impl Cases {
    fn add(
        &mut self,
        op: &'static str,
        route: impl Into<String>,
        label: impl Into<String>,
        build: impl Fn(&mut Program) -> Result<(), Broken> + Send + Sync + 'static,
    ) {
        self.0.push(Case::new(op, route, label, build));
    }

    /// Marks the case added last as one that takes long without hardware.
    fn mark_large(&mut self) {
        let last = self.0.pop().map(Case::large);
        self.0.extend(last);
    }

    /// Adds a case that needs gigabytes.
    fn add_large(
        &mut self,
        op: &'static str,
        label: impl Into<String>,
        build: impl Fn(&mut Program) -> Result<(), Broken> + Send + Sync + 'static,
    ) {
        self.0.push(Case::new(op, "64-bit offsets", label, build).large());
    }
}

/// The bounds of a family for that many values.
fn within(family: Family, dtype: DType, values: usize) -> Agreement {
    Agreement::Within(Bound::of(family, dtype, values))
}

/// What a label says of the options of an attention.
fn attention_options(window: Option<usize>, softcap: Option<f32>, sinks: bool) -> String {
    let mut label = String::new();
    if let Some(window) = window {
        label.push_str(&format!(", window {window}"));
    }
    if let Some(cap) = softcap {
        label.push_str(&format!(", softcap {cap}"));
    }
    if sinks {
        label.push_str(", sinks");
    }
    label
}

/// Elements of a list by turns.
fn turn<T: Copy>(list: &[T], index: usize) -> T {
    list[index % list.len()]
}

/// Most rows that are labelled as a matrix-vector product; where a backend changes its route is its
/// own choice.
const MAT_VEC_ROWS: usize = 8;

/// The route of a product of `m` rows, for people.
fn rows_route(m: usize) -> &'static str {
    if m <= MAT_VEC_ROWS { "mat-vec" } else { "mat-mat" }
}
