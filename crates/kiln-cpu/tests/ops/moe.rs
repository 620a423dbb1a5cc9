//! Routing of a mixture of experts.

use super::check;
use kiln_core::DType;
use kiln_core::ops::MoeRoute;

#[test]
fn moe_route() {
    for (experts, top_k) in [(1, 1), (3, 3), (8, 2), (17, 16), (64, 6), (128, 8), (300, 1)] {
        check(&format!("moe_route {top_k} of {experts}"), 1e-6, |make| {
            let (inf, nan) = (f32::INFINITY, f32::NAN);
            let mut rows = make.random.values(50 * experts, 3.0);
            rows.extend((0..experts).map(|i| (i % 3) as f32));
            rows.extend((0..experts).map(|i| if i % 2 == 0 { nan } else { i as f32 }));
            rows.extend(vec![-inf; experts]);
            rows.extend(vec![nan; experts]);
            rows.extend((0..experts).map(|i| if i == 0 { 0.0 } else { -inf }));
            rows.extend((0..experts).map(|i| if i == experts / 2 { 200.0 } else { 0.0 }));
            let count = rows.len() / experts;
            let logits = make.put(DType::F32, [count, experts], &rows)?;
            let mut outputs = Vec::new();
            let mut rec = make.device.record();
            for renormalize in [false, true] {
                let ids = make.device.tensor(DType::U32, [count, top_k])?;
                let weights = make.output(DType::F32, [count, top_k])?;
                rec.push(MoeRoute { logits: &logits, ids: &ids, weights: &weights, renormalize })?;
                outputs.extend([ids, weights]);
            }
            rec.finish()?.run()?;
            Ok(outputs)
        });
    }
}
