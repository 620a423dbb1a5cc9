//! Models, sessions and generation on every device that runs everywhere.

mod generate;
mod logits;
mod preflight;
mod quantize;
mod session;
mod shapes;
mod support;
