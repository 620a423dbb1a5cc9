//! How well a model predicts given tokens.

use crate::{ModelError, Session};

/// How well a model predicted a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// Mean of `-ln p(token t + 1 | tokens 0..=t)`, in nats.
    pub mean_nll: f64,
    /// `exp(mean_nll)`
    pub perplexity: f64,
    /// The most probable next token after each token; ties go to the lowest id.
    pub top1: Vec<u32>,
}

impl Session {
    /// Forgets the context, appends tokens and tells how well the model predicted each from those
    /// before it.
    ///
    /// # Errors
    /// [`ModelError::TooFewTokens`] for less than two, and as
    /// [`Session::for_each_logits`].
    pub fn perplexity(&mut self, tokens: &[u32]) -> Result<Perplexity, ModelError> {
        let got = tokens.len();
        if got < 2 {
            return Err(ModelError::TooFewTokens { operation: "a perplexity", needed: 2, got });
        }
        self.reset();
        let (mut total, mut top1) = (0.0, Vec::with_capacity(got));
        self.for_each_logits(tokens, |index, logits| {
            top1.push(argmax(logits));
            if let Some(&target) = tokens.get(index + 1) {
                total -= log_probability(logits, target);
            }
        })?;
        let mean_nll = total / (got - 1) as f64;
        Ok(Perplexity { mean_nll, perplexity: mean_nll.exp(), top1 })
    }
}

/// `ln softmax(logits)[token]`; NaN for a token that has no logit.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&logit| (logit as f64 - max).exp()).sum();
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NAN);
    logit as f64 - max - sum.ln()
}

/// The index of the largest value; ties go to the lowest.
fn argmax(values: &[f32]) -> u32 {
    let best = |best: (u32, f32), (index, &value): (u32, &f32)| {
        if value > best.1 { (index, value) } else { best }
    };
    (0..).zip(values).fold((0, f32::NEG_INFINITY), best).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_sum_to_one() {
        let logits = [1000.0, 999.0, -5.0];
        let sum: f64 = (0..3).map(|token| log_probability(&logits, token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((log_probability(&logits, 1) + 1.313_261_687_518_222_7).abs() < 1e-12);
        assert!(log_probability(&logits, 3).is_nan());
    }

    #[test]
    fn the_lowest_of_equal_values_wins() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, f32::NAN]), 1);
        assert_eq!(argmax(&[f32::NAN; 2]), 0);
    }
}
