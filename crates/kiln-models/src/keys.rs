//! Reading the metadata of an architecture and collecting everything that is wrong with it.

use std::fmt;

use kiln::format::{FormatError, Metadata, PerLayer};

use crate::Problem;

/// Largest count that is believed: products of two stay far from overflow.
const MAX_COUNT: usize = i32::MAX as usize;

/// The keys under one architecture's prefix. A getter that fails notes why and gives `None`.
pub(crate) struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(metadata: &'a Metadata, prefix: &'a str) -> Self {
        Self { metadata, prefix, problems: Vec::new() }
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// Notes a value that cannot be used.
    pub(crate) fn reject(
        &mut self,
        key: &str,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) {
        self.problems.push(Problem::key(self.full(key), expected, got));
    }

    fn optional<T>(
        &mut self,
        key: &str,
        get: impl FnOnce(&'a Metadata, &str) -> Result<Option<T>, FormatError>,
    ) -> Option<T> {
        let full = self.full(key);
        match get(self.metadata, &full) {
            Ok(value) => value,
            Err(error) => {
                self.problems.push(Problem::unreadable(full, &error));
                None
            }
        }
    }

    fn has(&self, key: &str) -> bool {
        self.metadata.get(&self.full(key)).is_some()
    }

    /// A positive integer; where there is an array for the layers, all its elements must be equal.
    fn count(&mut self, key: &str) -> Option<usize> {
        let value = match self.optional(key, Metadata::per_layer_of)? {
            PerLayer::Same(value) => value,
            PerLayer::Each(values) => match values.as_slice() {
                [first, rest @ ..] if rest.iter().all(|value| value == first) => *first,
                _ => {
                    self.reject(key, "one value for all layers", few(&values));
                    return None;
                }
            },
        };
        if (1..=MAX_COUNT).contains(&value) {
            return Some(value);
        }
        self.reject(key, format_args!("an integer from 1 to {MAX_COUNT}"), value);
        None
    }

    /// A positive integer that must be there.
    pub(crate) fn required_count(&mut self, key: &str) -> Option<usize> {
        if !self.has(key) {
            self.reject(key, "a positive integer", "nothing");
            return None;
        }
        self.count(key)
    }

    /// A positive integer with a default, itself `None` where it could not be determined.
    pub(crate) fn count_or(&mut self, key: &str, default: Option<usize>) -> Option<usize> {
        if self.has(key) { self.count(key) } else { default }
    }

    /// An integer from 0; 0 where it is absent.
    pub(crate) fn count_or_zero(&mut self, key: &str) -> usize {
        match self.optional(key, Metadata::usize_of) {
            Some(value) if value > MAX_COUNT => {
                self.reject(key, format_args!("an integer from 0 to {MAX_COUNT}"), value);
                0
            }
            value => value.unwrap_or(0),
        }
    }

    /// A finite number above zero; `None` where it is absent or zero.
    pub(crate) fn positive(&mut self, key: &str) -> Option<f32> {
        let value = self.optional(key, Metadata::f32_of)?;
        if value == 0.0 {
            return None;
        }
        if value.is_finite() && value > 0.0 {
            return Some(value);
        }
        self.reject(key, "a positive number", value);
        None
    }

    /// A finite number from zero that must be there.
    pub(crate) fn required_number(&mut self, key: &str) -> Option<f32> {
        if !self.has(key) {
            self.reject(key, "a number", "nothing");
            return None;
        }
        let value = self.optional(key, Metadata::f32_of)?;
        if value.is_finite() && value >= 0.0 {
            return Some(value);
        }
        self.reject(key, "a finite number that is not negative", value);
        None
    }

    pub(crate) fn text(&mut self, key: &str) -> Option<&'a str> {
        self.optional(key, |metadata, key| metadata.str_of(key))
    }

    /// Notes a value that differs from the only one supported.
    pub(crate) fn only(&mut self, key: &str, supported: usize) {
        match self.optional(key, Metadata::per_layer_of) {
            Some(PerLayer::Same(value)) if value != supported => {
                self.reject(key, supported, value);
            }
            Some(PerLayer::Each(values)) if values.iter().any(|&value| value != supported) => {
                self.reject(key, supported, few(&values));
            }
            _ => {}
        }
    }

    /// Booleans per layer, or a period of which all layers but the last are true (0: all layers).
    pub(crate) fn pattern(&mut self, key: &str, layers: usize, period: usize) -> Option<Vec<bool>> {
        let is_array = self
            .metadata
            .get(&self.full(key))
            .is_some_and(|value| matches!(value, kiln::format::Value::Array(_)));
        if is_array {
            let values = self.optional(key, Metadata::bools_of)?;
            if values.len() == layers {
                return Some(values);
            }
            let expected = format_args!("{layers} booleans, one per layer");
            self.reject(key, expected, format_args!("{} booleans", values.len()));
            return None;
        }
        let period = match self.has(key) {
            true => self.optional(key, Metadata::usize_of)?,
            false => period,
        };
        Some((0..layers).map(|layer| period == 0 || layer % period < period - 1).collect())
    }
}

/// The first elements of an array, for a message.
fn few(values: &[usize]) -> String {
    const SHOWN: usize = 8;
    if values.len() <= SHOWN {
        return format!("{values:?}");
    }
    let first: Vec<String> = values[..SHOWN].iter().map(usize::to_string).collect();
    format!("[{}, ...] of {} elements", first.join(", "), values.len())
}
