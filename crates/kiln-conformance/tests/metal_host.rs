//! The Metal kernels pass the whole table on the host, under checks and few schedules;
//! `kiln verify --device metal-host` takes more of them.

use kiln_conformance::{Outcome, cases};
use kiln_metal::{HostConfig, host_device};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Devices that run cases side by side.
const LANES: usize = 2;

/// Orders of threads that small cases are run in.
const SCHEDULES: usize = 2;

#[test]
fn cases_pass_under_every_schedule() {
    let cases = cases();
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
    println!("{passed:?} passed, {} failed, {skipped:?} skipped", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(passed.into_inner() >= 2000);
}
