//! `kiln verify`.

use crate::support::{json, kiln};

#[test]
fn the_last_line_counts_the_cases() {
    let run = kiln(&["verify", "--op", "softcap", "-t", "2"]);
    let last = run.stdout.lines().last().unwrap_or_default().to_owned();
    assert!(last.ends_with(" passed, 0 failed, 0 skipped"), "{run:?}");
    assert_eq!(run.stderr, "");
    run.ok();
}

#[test]
fn json_has_every_case() {
    let run = kiln(&["verify", "--op", "scale", "-t", "1", "--format", "json"]);
    let report = json(&run.ok());
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(report["passed"], cases.len());
    assert!(cases.iter().all(|case| case["op"] == "scale" && case["outcome"] == "passed"));
}

#[test]
fn names_that_no_case_has_are_an_error() {
    kiln(&["verify", "--op", "juggle"]).error_with(&["juggle", "rms_norm"]);
    kiln(&["verify", "--case", "no such case"]).error_with(&["no case", "--verbose"]);
}

#[test]
fn skipped_cases_are_printed_and_counted() {
    let text = kiln(&["verify", "--case", "copy/64-bit offsets", "-t", "1"]).ok();
    let skipped = text.lines().filter(|line| line.starts_with("skip copy/")).count();
    assert!(skipped > 0, "{text}");
    assert!(text.contains("--large") && text.ends_with(&format!(" {skipped} skipped\n")), "{text}");
}
