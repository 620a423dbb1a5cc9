//! The CPU device passes the whole table, on every instruction set of this machine.

use kiln_conformance::{Filter, Outcome, run_all};
use kiln_cpu::{Config, device, instruction_sets};

#[test]
fn every_instruction_set_passes_every_case() {
    for name in instruction_sets() {
        let config = Config { threads: Some(2), instruction_set: Some(name.to_owned()) };
        let device = device(config).unwrap();
        let mut failures = Vec::new();
        let summary = run_all(&device, &Filter::default(), &mut |report| match &report.outcome {
            Outcome::Failed(failure) => failures.push(format!("{report:?}: {failure:?}")),
            Outcome::Skipped { reason } => println!("{name}: skipped {report:?}: {reason}"),
            Outcome::Passed { .. } => (),
        });
        println!("{name}: {summary:?}");
        assert!(failures.is_empty(), "{name}: {}", failures.join("\n"));
        assert!(summary.passed >= 2000, "{name}: {summary:?}");
    }
}
