//! The table of operations in the README is made from code: from the names of the operations, the
//! devices of this build, and what came of running conformance cases on them.

use kiln::ops::Op;
use kiln::prelude::*;
use kiln_conformance::{Case, Outcome, Problem, cases};
use std::collections::BTreeMap;

const README: &str = include_str!("../../../README.md");
const BEGIN: &str = "<!-- ops:begin -->\n";
const END: &str = "<!-- ops:end -->";

/// The text between the markers.
fn section() -> &'static str {
    let (_, rest) = README.split_once(BEGIN).expect("the README has the first marker");
    rest.split_once(END).expect("the README has the second marker").0
}

/// The cells of a row of a Markdown table.
fn cells(line: &str) -> Vec<&str> {
    line.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// The cell that the README has now, for a device that is not here.
fn printed(device: &str, op: &str) -> Option<&'static str> {
    let mut lines = section().lines();
    let column = cells(lines.next()?).into_iter().position(|cell| cell == device)?;
    let name = format!("`{op}`");
    lines.map(cells).find(|row| row.first() == Some(&name.as_str()))?.get(column).copied()
}

/// Whether a device has a kernel for a case; fails where it has one that is wrong.
fn has_kernel(device: &Device, case: &Case) -> bool {
    match case.run(device) {
        Outcome::Passed { .. } => true,
        Outcome::Failed(failure) => match &failure.problem {
            Problem::Error(error) if error.contains("has no kernel for") => false,
            _ => panic!("{} on {}: {failure}", case.name(), device.name()),
        },
        Outcome::Skipped { reason } => panic!("{} on {}: {reason}", case.name(), device.name()),
    }
}

/// `yes` where the first case of every route of an operation has a kernel, `no` where none has.
fn support(device: &Device, cases: &[Case], op: &str) -> &'static str {
    let mut routes: BTreeMap<&str, &Case> = BTreeMap::new();
    // A rejected recording never reaches a kernel; large cases need gigabytes.
    let chosen = cases.iter().filter(|case| case.op() == op && !case.is_large());
    for case in chosen.filter(|case| case.route() != "rejected") {
        routes.entry(case.route()).or_insert(case);
    }
    let there = routes.values().filter(|case| has_kernel(device, case)).count();
    match there {
        0 => "no",
        _ if there == routes.len() => "yes",
        _ => "partly",
    }
}

#[test]
fn the_table_of_operations_is_that_of_the_code() {
    let options = DeviceOptions { threads: Some(2), ..Default::default() };
    // Without a Mac the kernels of Metal run on the host.
    let open = |name: &'static str| match Device::open(name, &options) {
        Err(_) if name == "metal" => (name, Device::open("metal-host", &options)),
        opened => (name, opened),
    };
    let devices: Vec<_> = kiln::devices().into_iter().map(open).collect();
    for (name, device) in &devices {
        if let Err(error) = device {
            println!("skipped: the column of {name} is taken as it is: {error}");
        }
    }
    let cases = cases();
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let names = devices.iter().map(|(name, _)| (*name).to_owned());
    let mut expected = row(["operation".to_owned()].into_iter().chain(names).collect());
    expected += &format!("|{}\n", "---|".repeat(devices.len() + 1));
    for op in Op::<Tensor>::NAMES {
        let cell = |(name, device): &(&str, Result<Device, OpenError>)| match device {
            Ok(device) => support(device, &cases, op).to_owned(),
            Err(_) => printed(name, op).unwrap_or("?").to_owned(),
        };
        let mut line = vec![format!("`{op}`")];
        line.extend(devices.iter().map(cell));
        expected += &row(line);
    }
    assert!(section() == expected, "put this between the markers of README.md:\n{expected}");
}
