//! What products become.

use super::*;
use crate::view::Memory;
use kiln_core::ops::MatmulId;

fn view(memory: usize, dtype: DType, shape: impl Into<kiln_core::Shape>) -> View {
    View::contiguous(Memory::Buffer(memory), 0, dtype, shape)
}

fn product(m: usize, weight: DType, precision: Precision) -> Matmul<View> {
    Matmul {
        input: view(0, DType::F32, [m, 512]),
        weight: view(1, weight, [100, 512]),
        output: view(2, DType::F32, [m, 100]),
        input_layout: InputLayout::RowMajor,
        precision,
    }
}

fn lowered(op: &Matmul<View>, caps: &Caps) -> Dispatch {
    let mut lowering = Lowering::new(caps);
    matmul(op, &mut lowering).unwrap();
    assert_eq!(lowering.phases.len(), 1);
    lowering.phases[0][0].clone()
}

fn value(dispatch: &Dispatch, constant: FunctionConstant) -> u32 {
    dispatch.kernel.constants.iter().find(|(c, _)| *c == constant).unwrap().1
}

const TENSOR_CAPS: Caps = Caps { tensor_ops: true, ..Caps::APPLE7 };

#[test]
fn few_rows_are_columns_of_a_mat_vec() {
    for m in [1, 7, MAT_VEC_MAX_ROWS] {
        let op = product(m, DType::Q4_0, Precision::Fast);
        let dispatch = lowered(&op, &TENSOR_CAPS);
        assert_eq!(dispatch.kernel.function, "mat_vec_q4_0_f32");
        assert_eq!(value(&dispatch, COLUMNS), m as u32);
        let rows = if m > 4 { 2 } else { 4 };
        assert_eq!(value(&dispatch, ROWS), rows);
        assert_eq!(dispatch.threadgroups, [100usize.div_ceil(2 * rows as usize), 1, 1]);
        assert_eq!(dispatch.threads, [64, 1, 1]);
    }
}

#[test]
fn many_rows_are_tiles() {
    let m = MAT_VEC_MAX_ROWS + 1;
    let fast = lowered(&product(m, DType::Q4K, Precision::Fast), &Caps::APPLE7);
    assert_eq!(fast.kernel.function, "mat_mat_q4_k_f32");
    assert_eq!((fast.threadgroups, fast.threads), ([1, 2, 1], [128, 1, 1]));
    assert_eq!(fast.threadgroup_memory, 8 << 10);
    let exact = lowered(&product(65, DType::Q4K, Precision::Exact), &Caps::APPLE7);
    assert_eq!(exact.kernel.function, "mat_mat_q4_k_exact_f32");
    assert_eq!((exact.threadgroups, exact.threadgroup_memory), ([3, 2, 1], 12 << 10));
    let plain = lowered(&product(m, DType::BF16, Precision::Exact), &Caps::APPLE7);
    assert_eq!(plain.kernel.function, "mat_mat_bf16_f32");
}

#[test]
fn the_tensor_units_take_what_becomes_f16() {
    let name =
        |weight, precision| lowered(&product(33, weight, precision), &TENSOR_CAPS).kernel.function;
    assert_eq!(name(DType::Q6K, Precision::Fast), "mat_mat_tensor_q6_k_f32");
    assert_eq!(name(DType::F16, Precision::Fast), "mat_mat_tensor_f16_f32");
    assert_eq!(name(DType::Q6K, Precision::Exact), "mat_mat_q6_k_exact_f32");
    assert_eq!(name(DType::BF16, Precision::Fast), "mat_mat_bf16_f32");
    let mut by_head = product(33, DType::Q6K, Precision::Fast);
    by_head.input = view(0, DType::F32, [4, 33, 128]);
    by_head.input_layout = InputLayout::HeadMajor;
    assert_eq!(lowered(&by_head, &TENSOR_CAPS).kernel.function, "mat_mat_q6_k_f32");
}

#[test]
fn every_tile_fits_in_threadgroup_memory() {
    for weight in DType::WEIGHTS {
        for precision in [Precision::Fast, Precision::Exact] {
            for mode in [Mode::Product, Mode::Gated, Mode::Up] {
                let bytes = tile_bytes(weight, precision, mode);
                assert!(bytes <= Caps::APPLE7.threadgroup_memory, "{weight} {mode:?}");
            }
            let rows = (1..=MAT_VEC_MAX_ROWS).map(|m| mat_vec_shape(weight, m, Mode::Product));
            assert!(rows.into_iter().all(|[rows, _]| (1..=MAX_ROWS).contains(&rows)));
        }
    }
}

fn gated(caps: &Caps, m: usize, up: DType) -> Vec<Vec<String>> {
    let op = GatedMatmul {
        input: view(0, DType::F32, [m, 512]),
        gate: view(1, DType::Q4K, [100, 512]),
        up: view(2, up, [100, 512]),
        output: view(3, DType::F32, [m, 100]),
        activation: Activation::Silu,
        precision: Precision::Fast,
    };
    let mut lowering = Lowering::new(caps);
    gated_matmul(&op, &mut lowering).unwrap();
    let names = |phase: Vec<Dispatch>| phase.into_iter().map(|d| d.kernel.function).collect();
    lowering.phases.into_iter().map(names).collect()
}

#[test]
fn a_gated_product_of_one_type_is_one_dispatch() {
    assert_eq!(gated(&Caps::APPLE7, 1, DType::Q4K), [["mat_vec_q4_k_f32"]]);
    assert_eq!(gated(&Caps::APPLE7, 9, DType::Q4K), [["mat_mat_q4_k_f32"]]);
    let two = [["mat_mat_q4_k_f32"], ["mat_mat_q6_k_f32"]];
    assert_eq!(gated(&Caps::APPLE7, 9, DType::Q6K), two);
    let tensors = gated(&TENSOR_CAPS, 9, DType::Q4K);
    assert_eq!(tensors[0], ["mat_mat_tensor_q4_k_f32"; 2]);
    assert_eq!(tensors[1], ["silu_mul_f32"]);
}

#[test]
fn many_routed_rows_are_grouped_by_expert_first() {
    let op = MatmulId {
        input: view(0, DType::F32, [40, 512]),
        weight: view(1, DType::Q4K, [5, 100, 512]),
        ids: view(2, DType::U32, [40, 2]),
        output: view(3, DType::F32, [40, 2, 100]),
        precision: Precision::Fast,
    };
    let mut lowering = Lowering::new(&Caps::APPLE7);
    matmul_id(&op, &mut lowering).unwrap();
    assert_eq!(lowering.phases[0][0].kernel.function, "expert_tiles");
    // 80 slots in two full tiles, one that is not for each expert, one of slots without.
    assert_eq!(lowering.phases[1][0].threadgroups, [2 + 5 + 1, 2, 1]);
}
