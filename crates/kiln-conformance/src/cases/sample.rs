//! Drawing tokens.

use super::{Cases, turn};
use crate::program::{Agreement, Layout, Program};
use crate::rng::Dist;
use kiln_core::DType;
use kiln_core::ops::*;

const OP: &str = "sample";

/// How near a random number or a nucleus may be to a step of the distribution function, in
/// probability: well above the rounding of a sum in f32.
const MARGIN: f64 = 1e-5;

#[derive(Clone, Copy)]
struct Spec {
    rows: usize,
    n: usize,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    /// Standard deviation of the logits.
    spread: f32,
    /// Every logit has neighbours equal to it.
    ties: bool,
    layout: Layout,
}

pub(super) fn add(cases: &mut Cases) {
    let lengths = [1, 2, 33, 257, 1000, 4097, 32_000];
    let mut index = 0;
    for n in lengths {
        for top_k in [0, 1, 2, 40, 10_000_000] {
            for top_p in [1.0, 0.9, 0.3, 1e-6] {
                index += 1;
                // The longest rows only in a part of the grid.
                if n > 4000 && index % 3 != 0 {
                    continue;
                }
                add_one(
                    cases,
                    Spec {
                        rows: turn(&[5, 1, 3], index),
                        n,
                        temperature: turn(&[1.0, 0.7, 0.1, 2.0], index / 3),
                        top_k,
                        top_p,
                        spread: turn(&[3.0, 6.0], index),
                        ties: index % 5 == 0,
                        layout: Layout::turn(index),
                    },
                );
            }
        }
        let base = Spec {
            rows: 3,
            n,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            spread: 1.0,
            ties: false,
            layout: Layout::Guarded,
        };
        add_one(cases, base);
        add_one(cases, Spec { ties: true, top_k: 5, top_p: 0.5, ..base });
    }
    // A large vocabulary, and more candidates than a GPU's block keeps.
    for (index, top_k) in [0, 40, 128, 129, 3000].into_iter().enumerate() {
        let top_p = turn(&[0.9, 1.0], index);
        let (temperature, spread, ties) = (turn(&[0.8, 1.5, 20.0], index), 3.0, index == 3);
        let layout = Layout::turn(index);
        let n = 140_003;
        add_one(cases, Spec { rows: 1, n, temperature, top_k, top_p, spread, ties, layout });
    }
    special(cases);
}

fn add_one(cases: &mut Cases, s: Spec) {
    let Spec { rows, n, temperature, top_k, top_p, spread, ties, layout } = s;
    let route = if temperature == 0.0 { "greedy" } else { "drawn" };
    let ties = if ties { ", ties" } else { "" };
    let label = format!(
        "[{rows}, {n}] temperature {temperature} top_k {top_k} top_p {top_p}, spread {spread}\
         {ties}, {layout}"
    );
    cases.add(OP, route, label, move |p| {
        p.layout(layout);
        let mut logits = p.rng.values(rows * n, Dist::Normal(spread));
        if s.ties {
            let step = |v: &mut f32| *v = (*v * 2.0).round() / 2.0;
            logits.iter_mut().for_each(step);
        }
        let random: Vec<f32> = logits.chunks_exact(n).map(|row| random(p, &s, row)).collect();
        push(p, &s, &logits, &random);
        Ok(())
    });
}

fn push(p: &mut Program, s: &Spec, logits: &[f32], random: &[f32]) {
    let logits = p.floats(DType::F32, [s.rows, s.n], logits);
    let random = p.floats(DType::F32, [s.rows], random);
    let output = p.output(DType::U32, [s.rows], Agreement::Exact);
    let Spec { temperature, top_k, top_p, .. } = *s;
    p.push(Op::Sample(Sample { logits, random, output, temperature, top_k, top_p }));
}

/// A random number whose token does not hang on the last bits of a sum: not near any step of the
/// distribution function, whichever way a step near the nucleus falls.
fn random(p: &mut Program, s: &Spec, logits: &[f32]) -> f32 {
    if s.temperature == 0.0 {
        return p.rng.unit();
    }
    let candidates = distributions(s, logits);
    let mut best = (0.0, -1.0);
    for _ in 0..200 {
        let u = p.rng.unit();
        let nearest =
            candidates.iter().flatten().map(|step| (step - f64::from(u)).abs()).fold(1.0, f64::min);
        if nearest > best.1 {
            best = (u, nearest);
        }
        if nearest > 10.0 * MARGIN {
            break;
        }
    }
    best.0
}

/// The steps of the distribution function. There are two where the nucleus ends so near a step that
/// rounding may put it on either side.
fn distributions(s: &Spec, logits: &[f32]) -> Vec<Vec<f64>> {
    let mut weights: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    if s.top_k > 0 {
        weights.truncate(s.top_k);
    }
    let best = weights[0];
    weights.iter_mut().for_each(|x| *x = ((*x - best) / f64::from(s.temperature)).exp());
    let total: f64 = weights.iter().sum();
    let top_p = f64::from(s.top_p);
    let prefix = |nucleus: f64| {
        let mut sum = 0.0;
        let end = weights.iter().position(|w| {
            sum += w;
            sum >= nucleus * total
        });
        end.map_or(weights.len(), |end| end + 1)
    };
    let mut ends = vec![prefix(top_p - MARGIN), prefix(top_p), prefix(top_p + MARGIN)];
    ends.dedup();
    let steps = |end: usize| {
        let total: f64 = weights[..end].iter().sum();
        let mut sum = 0.0;
        let running = weights[..end].iter().map(|w| {
            sum += w;
            sum / total
        });
        running.collect()
    };
    ends.into_iter().map(steps).collect()
}

/// Logits that are no numbers or all alike, and random numbers at the ends.
fn special(cases: &mut Cases) {
    let spec = Spec {
        rows: 4,
        n: 100,
        temperature: 0.8,
        top_k: 0,
        top_p: 1.0,
        spread: 2.0,
        ties: false,
        layout: Layout::Guarded,
    };
    cases.add(OP, "special values", "minus infinity is never drawn", move |p| {
        let mut logits = p.rng.values(400, Dist::Normal(2.0));
        logits.iter_mut().step_by(3).for_each(|v| *v = f32::NEG_INFINITY);
        logits[300..].fill(f32::NEG_INFINITY);
        logits[342] = -1.0;
        let random: Vec<f32> = logits.chunks_exact(100).map(|row| random(p, &spec, row)).collect();
        push(p, &spec, &logits, &random);
        Ok(())
    });
    for (top_k, top_p) in [(0, 1.0), (0, 0.50005), (7, 1.0), (150, 0.50005), (1000, 1.0)] {
        let label = format!("all alike, top_k {top_k} top_p {top_p}");
        cases.add(OP, "special values", label, move |p| {
            let spec = Spec { rows: 1, n: 5000, top_k, top_p, ..spec };
            push(p, &spec, &[1.5; 5000], &[0.70009]);
            Ok(())
        });
    }
    cases.add(OP, "special values", "random 0 gives the first candidate", move |p| {
        let logits = p.rng.values(400, Dist::Normal(2.0));
        push(p, &spec, &logits, &[0.0; 4]);
        Ok(())
    });
    cases.add(OP, "special values", "random below 1 gives a candidate of the nucleus", move |p| {
        let spec = Spec { top_k: 3, ..spec };
        let logits = p.rng.values(400, Dist::Uniform);
        push(p, &spec, &logits, &[0.999; 4]);
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Program, Source};

    /// Every random number of the table is far enough from the steps.
    #[test]
    fn no_token_hangs_on_rounding() {
        let mut cases = Cases(Vec::new());
        add(&mut cases);
        for case in cases.0.iter().filter(|case| case.route() == "drawn") {
            let program: Program = case.program().unwrap();
            let Some(Op::Sample(op)) = program.ops.first() else { panic!("{}", case.name()) };
            let n = program.operands[op.logits.0].shape.last();
            let floats = |slot: crate::program::Slot| match &program.operands[slot.0].source {
                Source::Host(bytes, _) => crate::host::decode(DType::F32, bytes),
                other => panic!("{other:?}"),
            };
            let spec = Spec {
                rows: 1,
                n,
                temperature: op.temperature,
                top_k: op.top_k,
                top_p: op.top_p,
                spread: 1.0,
                ties: false,
                layout: Layout::Guarded,
            };
            let logits: Vec<f32> = floats(op.logits).into_iter().map(|x| x as f32).collect();
            for (row, u) in logits.chunks_exact(n).zip(floats(op.random)) {
                for step in distributions(&spec, row).concat() {
                    assert!((step - u).abs() > MARGIN, "{}: {u} near {step}", case.name());
                }
            }
        }
    }
}
