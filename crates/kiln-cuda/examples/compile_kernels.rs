//! Compiles every kernel without a device and prints what each needs: the check of CI.
//!
//! `compile_kernels --nvrtc PATH [--unit TEXT] [--cache FOLDER] ARCHITECTURE...`

use kiln_cuda::{Nvrtc, Unit, resources};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Kernels that may use local memory, and why.
const ALLOWED: &[(&str, &str)] =
    &[("rope_table", "the frame of the subroutine that divides f64 angles")];

struct Options {
    nvrtc: Option<PathBuf>,
    unit: String,
    cache: Option<PathBuf>,
    architectures: Vec<String>,
}

fn options() -> Options {
    let mut options =
        Options { nvrtc: None, unit: String::new(), cache: None, architectures: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--nvrtc" => options.nvrtc = args.next().map(PathBuf::from),
            "--unit" => options.unit = args.next().unwrap_or_default(),
            "--cache" => options.cache = args.next().map(PathBuf::from),
            _ => options.architectures.push(arg),
        }
    }
    if options.architectures.is_empty() {
        options.architectures = ["sm_80", "sm_90a"].map(str::to_owned).to_vec();
    }
    options
}

/// Compiles a unit; lines about its kernels and the number of problems.
fn check(nvrtc: &Nvrtc, options: &Options, unit: Unit, architecture: &str) -> (String, usize) {
    let name = unit.to_string();
    let cubin = match unit.compile(nvrtc, architecture, options.cache.clone()) {
        Ok(cubin) => cubin,
        Err(error) => return (format!("FAIL {error}\n"), 1),
    };
    let Some(kernels) = resources(&cubin) else {
        return (format!("FAIL {name} for {architecture}: no resources in the cubin\n"), 1);
    };
    let (mut text, mut problems) = (String::new(), 0);
    // Names with a dollar are subroutines; their frames are counted in the kernels that call them.
    for (kernel, resources) in kernels.into_iter().filter(|(name, _)| !name.starts_with('$')) {
        let allowed = ALLOWED.iter().find(|(prefix, _)| kernel.starts_with(prefix));
        let verdict = match (resources.local, allowed) {
            (0, _) => "ok  ".to_owned(),
            (_, Some((_, why))) => format!("ok ({why})"),
            (_, None) => {
                problems += 1;
                "FAIL: local memory".to_owned()
            }
        };
        let (registers, local) = (resources.registers, resources.local);
        text.push_str(&format!(
            "{architecture} {name}: {kernel}: {registers} registers, {local} bytes local: {verdict}\n"
        ));
    }
    (text, problems)
}

fn main() -> ExitCode {
    let options = options();
    let nvrtc = match Nvrtc::load(options.nvrtc.as_deref()) {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let units = Unit::all().into_iter().filter(|unit| unit.to_string().contains(&options.unit));
    let work: Vec<(Unit, &String)> = units
        .flat_map(|unit| options.architectures.iter().map(move |architecture| (unit, architecture)))
        .filter(|(unit, architecture)| !unit.needs_hopper() || *architecture == "sm_90a")
        .collect();
    let (next, problems, count) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((unit, architecture)) =
                    work.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let (text, found) = check(&nvrtc, &options, *unit, architecture);
                    problems.fetch_add(found, Ordering::Relaxed);
                    let mut count = count.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    *count += text.lines().count();
                    print!("{text}");
                }
            });
        }
    });
    let problems = problems.into_inner();
    let count = count.into_inner().unwrap_or_default();
    println!("{count} kernels compiled, {problems} problems");
    if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
