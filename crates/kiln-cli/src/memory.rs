//! Memory of the machine and of this process, as Linux tells it; unknown elsewhere.

use std::fs::read_to_string;

use kiln_models::{Preflight, SessionOptions};

use crate::error::CliError;
use crate::output;

/// Bytes that can be allocated before the machine swaps or a limit of the container is reached.
pub(crate) fn available() -> Option<u64> {
    let machine = field(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let limit = read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    Some(limit.map_or(machine, |limit| limit.min(machine)))
}

/// Most bytes that this process ever had in memory, mapped files included.
pub(crate) fn peak() -> Option<u64> {
    field(&read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The bytes of a line such as `MemAvailable:   22384 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Refuses a session that needs more memory than there is, before any is allocated.
///
/// Weights that do not fit by themselves are let through: mapped files are read again as needed.
pub(crate) fn check(preflight: &Preflight, options: &SessionOptions) -> Result<(), CliError> {
    match available() {
        Some(available) => check_against(available, preflight, options),
        None => Ok(()),
    }
}

fn check_against(
    available: u64,
    preflight: &Preflight,
    options: &SessionOptions,
) -> Result<(), CliError> {
    let need = |context| preflight.memory(&SessionOptions { context, ..*options });
    let Some(memory) = need(options.context) else { return Ok(()) };
    let weights = if memory.weights < available { memory.weights } else { 0 };
    let room = available - weights;
    let fits =
        |context| need(context).is_some_and(|m| m.kv_cache.saturating_add(m.scratch) <= room);
    if fits(options.context) {
        return Ok(());
    }
    let advice = match largest(options.context, fits) {
        0 => "free some memory or use a smaller model".to_owned(),
        context => format!("give --ctx {context} or less, or fewer tokens, or free some memory"),
    };
    Err(CliError::new(format_args!(
        "a context of {} tokens needs {} (weights {}, key-value cache {}, scratch {}), \
         {} are available: {advice}",
        options.context,
        output::bytes(memory.total()),
        output::bytes(memory.weights),
        output::bytes(memory.kv_cache),
        output::bytes(memory.scratch),
        output::bytes(available),
    )))
}

/// Refuses synthetic weights that do not fit.
pub(crate) fn check_weights(bytes: u64) -> Result<(), CliError> {
    match available() {
        Some(available) if bytes > available => Err(CliError::new(format_args!(
            "the weights need {}, {} are available: use a smaller --shape or --quant",
            output::bytes(bytes),
            output::bytes(available)
        ))),
        _ => Ok(()),
    }
}

/// The largest context below `limit` that fits, rounded down to two digits; 0 if none does.
fn largest(limit: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, limit);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    let digits = low.checked_ilog10().unwrap_or(0);
    let unit = 10usize.pow(digits.saturating_sub(1));
    low / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kibibytes() {
        let text = "MemTotal:  100 kB\nMemAvailable:     23 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(23 * 1024));
        assert_eq!(field(text, "VmHWM:"), None);
        assert_eq!(field("VmHWM: lots", "VmHWM:"), None);
    }

    #[test]
    fn the_largest_context_is_a_round_number_that_fits() {
        assert_eq!(largest(1_000_000, |context| context <= 12_345), 12_000);
        assert_eq!(largest(100, |context| context <= 7), 7);
        assert_eq!(largest(100, |_| false), 0);
    }
}
