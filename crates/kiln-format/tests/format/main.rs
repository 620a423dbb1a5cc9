//! Readers and writer against well-formed, malformed and hostile files.

mod allocation;
mod builder;
#[cfg(not(miri))]
mod corpus;
#[cfg(not(miri))]
mod files;
mod malformed;
mod reading;
#[cfg(not(miri))]
mod round_trip;
mod safetensors;
mod writing;
