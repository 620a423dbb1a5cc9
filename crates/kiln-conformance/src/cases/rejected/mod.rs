//! Broken contracts: recording must fail with the right error.

mod mutations;
mod rules;
mod valid;

use super::Cases;
use crate::program::{Check, Program};
use crate::reject::{Flaw, Kind, Rejection};

const ROUTE: &str = "rejected";

pub(super) fn add(cases: &mut Cases) {
    mutations::add(cases);
    rules::add(cases);
}

fn reject(p: &mut Program, flaw: Flaw, kinds: &'static [Kind], names: Option<&'static str>) {
    p.check = Check::Rejected(Rejection { flaw, kinds, names });
}
