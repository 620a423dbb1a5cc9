//! The table itself, and the reference against itself.

use kiln_conformance::{Filter, Outcome, cases, run_all};
use kiln_core::ops::Op;
use kiln_core::{DType, Tensor};
use std::collections::{BTreeMap, HashSet};

#[test]
fn every_operation_has_cases() {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases() {
        *count.entry(case.op()).or_default() += 1;
    }
    for name in Op::<Tensor>::NAMES {
        let cases = count.get(name).copied().unwrap_or(0);
        assert!(cases >= 20, "{name} has {cases} cases");
    }
    println!("{count:#?}");
    assert!(count.values().sum::<usize>() >= 2000);
    assert!(count.keys().all(|op| *op == "plan" || Op::<Tensor>::NAMES.contains(op)));
}

#[test]
fn names_are_unique_and_seeds_depend_on_them_alone() {
    let mut names = HashSet::new();
    for case in cases() {
        assert!(names.insert(case.name()), "twice: {}", case.name());
    }
    let seeds: HashSet<u64> = cases().iter().map(|case| case.seed()).collect();
    assert_eq!(seeds.len(), names.len());
}

/// The grid of products is thinned; every weight type must still meet every extent and route.
#[test]
fn products_cover_their_grid() {
    let labels: Vec<(String, String)> = cases()
        .iter()
        .filter(|case| case.op() == "matmul" && case.route() != "rejected")
        .map(|case| (case.route().to_owned(), case.label().to_owned()))
        .collect();
    let has = |route: &str, parts: [String; 2]| {
        labels
            .iter()
            .any(|(r, label)| r.starts_with(route) && parts.iter().all(|p| label.contains(p)))
    };
    for w in DType::WEIGHTS {
        let weight = format!(" x {w} ");
        for route in ["fast", "exact"] {
            for m in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 65] {
                assert!(has(route, [weight.clone(), format!(" m {m} ")]), "{route} {w} m {m}");
            }
        }
        for n in [1, 2, 7, 33, 64, 72, 100] {
            for route in ["fast mat-vec", "fast mat-mat", "exact mat-vec", "exact mat-mat"] {
                assert!(has(route, [weight.clone(), format!(" n {n} ")]), "{route} {w} n {n}");
            }
        }
        let lengths: &[usize] = match w.block_len() {
            1 => &[1, 3, 31, 64, 704, 2112],
            32 => &[32, 64, 704, 2112, 512, 768],
            _ => &[256, 512, 768],
        };
        for k in lengths {
            for route in ["fast mat-vec", "fast mat-mat", "exact mat-vec", "exact mat-mat"] {
                assert!(has(route, [weight.clone(), format!(" k {k},")]), "{route} {w} k {k}");
            }
        }
        for source in ["imported", "sliced", "uploaded"] {
            assert!(has("fast", [weight.clone(), format!("{source},")]), "{w} {source}");
        }
    }
}

#[test]
fn the_reference_agrees_with_itself() {
    let device = kiln_reference::device();
    let mut skipped = Vec::new();
    let mut failed = Vec::new();
    let summary = run_all(&device, &Filter::default(), &mut |report| match &report.outcome {
        Outcome::Passed { .. } => {}
        Outcome::Failed(_) => failed.push(report.to_string()),
        Outcome::Skipped { .. } => skipped.push(report.to_string()),
    });
    println!("{summary}\n{}", skipped.join("\n"));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn reports_serialise() {
    let device = kiln_reference::device();
    let filter = Filter { op: Some("argmax".to_owned()), ..Default::default() };
    let mut reports = Vec::new();
    run_all(&device, &filter, &mut |report| reports.push(report.clone()));
    let json = serde_json::to_value(&reports).unwrap();
    assert_eq!(json[0]["op"], "argmax");
    assert_eq!(json[0]["outcome"], "passed");
}
