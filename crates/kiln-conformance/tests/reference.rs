//! The table itself, and the reference against itself.

use kiln_conformance::{Filter, Outcome, cases, run_all};
use kiln_core::Tensor;
use kiln_core::ops::Op;
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
