//! The Metal kernels pass the table on the host, under checks. Every [`SHARE`]th case is run, under
//! few schedules; `kiln verify --device metal-host` runs all of them under more.

use kiln_conformance::{Outcome, cases};
use kiln_metal::{HostConfig, host_device};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Devices that run cases side by side.
const LANES: usize = 2;

/// One case in so many is run.
const SHARE: usize = 4;

/// Orders of threads that small cases are run in.
const SCHEDULES: usize = 2;

#[test]
fn cases_pass_under_every_schedule() {
    let all = cases();
    let cases: Vec<_> = all.iter().step_by(SHARE).collect();
    let next = AtomicUsize::new(0);
    let (passed, skipped) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("metal-host");
                let config = HostConfig {
                    cache: Some(cache),
                    schedules: SCHEDULES,
                    ..HostConfig::default()
                };
                let device = host_device(config).unwrap();
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if case.is_large() {
                        skipped.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    match case.run(&device) {
                        Outcome::Passed { .. } => passed.fetch_add(1, Ordering::Relaxed),
                        Outcome::Skipped { .. } => skipped.fetch_add(1, Ordering::Relaxed),
                        Outcome::Failed(failure) => {
                            let mut failures = failures.lock().unwrap();
                            failures.push(format!("{}: {failure}", case.name()));
                            failures.len()
                        }
                    };
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let left = all.len() - cases.len();
    println!("{passed:?} passed, {} failed, {skipped:?} skipped, {left} left out", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(passed.into_inner() >= 1000);
}
