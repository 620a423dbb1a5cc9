//! The built `kiln` binary, run as a user runs it.

mod bench;
mod errors;
mod generate;
mod inspect;
mod malformed;
mod measure;
mod quantize;
mod support;
mod verify;
