//! Which tensor of a file gets which type.
//!
//! The rules are those of llama.cpp's `llama-quantize` without an importance matrix, so that a file
//! of a name has the same types whichever program wrote it.

use kiln::DType;
use kiln::format::{GgmlType, Gguf, PerLayer, TensorInfo};

use super::FileType;
use crate::tensors::{OUTPUT, TOKEN_EMBD};

/// The type a tensor gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) ggml_type: GgmlType,
    /// The type it would have if its rows were whole blocks of that.
    pub(super) instead_of: Option<DType>,
}

/// Parts of the names of matrices that are small or sensitive and keep their type.
const KEPT: [&str; 25] = [
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".patch_embd",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
];

/// Whole names of matrices that keep their type.
const KEPT_NAMES: [&str; 2] = ["position_embd.weight", "token_types.weight"];

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    TokenEmbd,
    Output,
    /// Makes the values, alone or together with queries and keys.
    AttnV,
    AttnOutput,
    AttnK,
    FfnDown,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        const PARTS: [(&str, Role); 6] = [
            ("attn_qkv.weight", Role::AttnV),
            ("attn_kv_b.weight", Role::AttnV),
            ("attn_v.weight", Role::AttnV),
            ("attn_k.weight", Role::AttnK),
            ("attn_output.weight", Role::AttnOutput),
            ("ffn_down", Role::FfnDown),
        ];
        if name == OUTPUT {
            return Role::Output;
        }
        if name == TOKEN_EMBD || name == "per_layer_token_embd.weight" {
            return Role::TokenEmbd;
        }
        PARTS
            .into_iter()
            .find(|(part, _)| name.contains(part))
            .map_or(Role::Other, |(_, role)| role)
    }
}

/// True for matrices that are multiplied with, and not too small to matter.
fn is_quantised(tensor: &TensorInfo) -> bool {
    let name = tensor.name();
    // Axes of length 1 in front do not count: a matrix of one row is a vector.
    let axes = tensor.shape().iter().skip_while(|&&len| len == 1).count();
    axes >= 2
        && name.ends_with("weight")
        && !KEPT_NAMES.contains(&name)
        && !KEPT.iter().any(|part| name.contains(part))
}

/// The layer in a name such as `blk.3.attn_v.weight`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// True for layers that get more bits: the first and the last eighth, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= layers.saturating_mul(7) / 8 || (layer - eighth) % 3 == 2
}

/// What the rules ask about a model.
struct Facts {
    layers: usize,
    /// Query heads per key-value head.
    group: usize,
    experts: usize,
    /// True for the models of 80 layers whose value projections are small.
    large: bool,
    /// Whether the token embedding is the output matrix too.
    tied: bool,
    value_matrices: usize,
}

impl Facts {
    fn of(file: &Gguf) -> Self {
        let architecture = file.architecture().unwrap_or_default();
        let first = |key: &str| {
            let value = file.metadata().per_layer_of(&format!("{architecture}.{key}"));
            value.ok().flatten().and_then(|value: PerLayer<usize>| value.get(0))
        };
        let names = || file.tensors().iter().map(TensorInfo::name);
        let named_layers = names().filter_map(layer).max().map_or(0, |last| last.saturating_add(1));
        let layers = first("block_count").unwrap_or(named_layers);
        let heads = first("attention.head_count").unwrap_or(0);
        let kv_heads = first("attention.head_count_kv").unwrap_or(heads);
        let large = match architecture {
            "llama" => layers == 80 && heads != kv_heads,
            "qwen2" => layers == 80,
            _ => false,
        };
        Self {
            layers,
            group: heads.checked_div(kv_heads).unwrap_or(0),
            experts: first("expert_count").unwrap_or(0),
            large,
            tied: !names().any(|name| name == OUTPUT),
            value_matrices: names().filter(|name| Role::of(name) == Role::AttnV).count(),
        }
    }
}

/// Matrices of a kind that the rules have seen.
#[derive(Default)]
struct Seen {
    value_matrices: usize,
    ffn_down: usize,
}

/// The types of all tensors, in the order of the file. `None` where a tensor keeps its type.
pub(super) fn targets(file: &Gguf, file_type: FileType, pure: bool) -> Vec<Option<Target>> {
    let facts = Facts::of(file);
    let tensors = file.tensors();
    // The rules count matrices by layer, whatever the order of the file.
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| (layer(tensors[index].name()), tensors[index].name()));
    let mut seen = Seen::default();
    let mut targets = vec![None; tensors.len()];
    for index in order {
        let tensor = &tensors[index];
        if is_quantised(tensor) {
            let row = tensor.shape().last().copied().unwrap_or(0);
            let wanted = match file_type.dtype() {
                plain @ (DType::F32 | DType::F16 | DType::BF16) => plain,
                dtype if pure => dtype,
                dtype => mixed(dtype, file_type, tensor.name(), row, &facts, &mut seen),
            };
            targets[index] = fitting(wanted, row);
        }
    }
    targets
}

/// `wanted`, or the type that takes its place where rows are not whole blocks.
fn fitting(wanted: DType, row: usize) -> Option<Target> {
    let fits = |dtype: DType| row.is_multiple_of(dtype.block_len());
    if fits(wanted) {
        return Some(Target { ggml_type: GgmlType::from_dtype(wanted)?, instead_of: None });
    }
    let smaller = match wanted {
        DType::Q2K | DType::Q3K => DType::Q4_0,
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        DType::Iq4Xs => DType::Iq4Nl,
        other => other,
    };
    let dtype = if fits(smaller) { smaller } else { DType::F16 };
    Some(Target { ggml_type: GgmlType::from_dtype(dtype)?, instead_of: Some(wanted) })
}

/// The type of a matrix in a mix.
fn mixed(
    dtype: DType,
    file_type: FileType,
    name: &str,
    row: usize,
    facts: &Facts,
    seen: &mut Seen,
) -> DType {
    match Role::of(name) {
        Role::Output => output(dtype, row),
        Role::TokenEmbd if facts.tied => output(dtype, row),
        Role::AttnV => {
            let index = seen.value_matrices;
            seen.value_matrices += 1;
            values(dtype, file_type, index, facts)
        }
        Role::AttnK if facts.experts == 8 => DType::Q8_0,
        Role::FfnDown => {
            let index = if facts.experts > 1 { layer(name) } else { None };
            let index = index.unwrap_or(seen.ffn_down);
            seen.ffn_down += 1;
            ffn_down(dtype, file_type, index, facts.layers)
        }
        Role::AttnOutput => attn_output(dtype, file_type, facts),
        Role::TokenEmbd | Role::AttnK | Role::Other => dtype,
    }
}

/// The matrix that makes the logits.
fn output(dtype: DType, row: usize) -> DType {
    if dtype == DType::Q8_0 || !row.is_multiple_of(dtype.block_len()) {
        return DType::Q8_0;
    }
    DType::Q6K
}

/// The `index`-th matrix that makes values.
fn values(dtype: DType, file_type: FileType, index: usize, facts: &Facts) -> DType {
    if facts.experts == 8 {
        return DType::Q8_0;
    }
    let grouped = facts.group >= 4;
    let chosen = match file_type {
        FileType::Q2K if grouped => DType::Q4K,
        FileType::Q2K => DType::Q3K,
        FileType::Q3KM if index >= 2 => DType::Q4K,
        FileType::Q3KM | FileType::Q3KL => DType::Q5K,
        FileType::Iq4Nl | FileType::Iq4Xs if grouped => DType::Q5K,
        FileType::Q4KM | FileType::Q5KM if more_bits(index, facts.value_matrices) => DType::Q6K,
        FileType::Q4KS if index < 4 => DType::Q5K,
        _ => dtype,
    };
    match chosen {
        DType::Q3K | DType::Q4K if facts.large => DType::Q5K,
        chosen => chosen,
    }
}

fn ffn_down(dtype: DType, file_type: FileType, layer: usize, layers: usize) -> DType {
    match file_type {
        FileType::Q2K => DType::Q3K,
        FileType::Q3KM if layer < layers / 16 => DType::Q5K,
        FileType::Q3KM => DType::Q4K,
        FileType::Q3KL => DType::Q5K,
        FileType::Q4KM | FileType::Q5KM if more_bits(layer, layers) => DType::Q6K,
        FileType::Q4KS | FileType::Iq4Nl | FileType::Iq4Xs if layer < layers / 8 => DType::Q5K,
        _ => dtype,
    }
}

fn attn_output(dtype: DType, file_type: FileType, facts: &Facts) -> DType {
    if facts.experts == 8 {
        return match file_type {
            FileType::Q2K
            | FileType::Q3KS
            | FileType::Q3KM
            | FileType::Q4KS
            | FileType::Q4KM
            | FileType::Iq4Nl
            | FileType::Iq4Xs => DType::Q5K,
            _ => dtype,
        };
    }
    match file_type {
        FileType::Q2K => DType::Q3K,
        FileType::Q3KM => DType::Q4K,
        FileType::Q3KL => DType::Q5K,
        _ => dtype,
    }
}
