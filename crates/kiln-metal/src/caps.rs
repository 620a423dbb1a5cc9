//! What a device can do, as far as the choice of kernels depends on it.

/// Capabilities and limits of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    /// Bytes of threadgroup memory.
    pub(crate) threadgroup_memory: usize,
    /// Threads of a threadgroup.
    pub(crate) threads: usize,
    /// Whether `mpp::tensor_ops` compiles and runs.
    pub(crate) tensor_ops: bool,
}

/// Threads of a simdgroup on every Apple GPU.
pub(crate) const SIMD_WIDTH: usize = 32;

impl Caps {
    /// What every Apple GPU since the M1 has.
    pub(crate) const APPLE7: Caps =
        Caps { threadgroup_memory: 32 << 10, threads: 1024, tensor_ops: false };
}
