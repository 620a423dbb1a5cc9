//! Routing of a mixture of experts.

use super::check::Check;
use super::declare::*;
use super::{Access, Contract, Op, Role, clone_tensors};
use crate::error::OpError;
use crate::{DType, Tensor};

op! {
    /// Softmax over all experts, then the `top_k` largest in falling order; ties go to the lowest
    /// index, NaN never wins against a number.
    ///
    /// With `renormalize` the chosen weights are divided by their sum, clamped below at 6.1e-5.
    MoeRoute = "moe_route", in_place: [],
    tensors {
        /// `[rows, E]` f32
        Read logits,
        /// `[rows, top_k]` u32
        Write ids,
        /// `[rows, top_k]` f32
        Write weights,
    }
    params {
        /// Whether the chosen weights sum to 1.
        renormalize: bool,
    }
}

impl Contract for MoeRoute<Tensor> {
    fn check(&self) -> Result<(), OpError> {
        let check = Check(Self::NAME);
        let [rows, experts] = check.dims("logits", &self.logits)?;
        check.dtype("logits", &self.logits, &[DType::F32])?;
        let [_, top_k] = check.dims("ids", &self.ids)?;
        check.shape("ids", &self.ids, &[rows, top_k])?;
        check.dtype("ids", &self.ids, &[DType::U32])?;
        check.shape("weights", &self.weights, &[rows, top_k])?;
        check.dtype("weights", &self.weights, &[DType::F32])?;
        if top_k > experts {
            return check.extent_rule("ids", 1, "at most the number of experts", top_k);
        }
        Ok(())
    }

    fn flops(&self) -> u64 {
        5 * self.logits.values() as u64
    }
}
