//! A model: its configuration and its weights on a device.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use kiln::Device;
use kiln::format::Gguf;

use crate::weights::{self, Weights};
use crate::{ModelConfig, ModelError, Preflight};

/// A decoder model on a device. Cloning is cheap and shares the weights.
///
/// ```no_run
/// use kiln_models::{Model, SamplerOptions, Session, SessionOptions};
/// # fn example(device: kiln::Device) -> Result<(), Box<dyn std::error::Error>> {
/// let file = kiln::format::Gguf::open("model.gguf")?;
/// let model = Model::load(&device, &file)?;
/// let mut session = Session::new(&model, SessionOptions::default())?;
/// let mut token = session.prefill(&[1, 15043])?;
/// for _ in 0..16 {
///     println!("{token}");
///     token = session.step()?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    device: Device,
    config: ModelConfig,
    weights: Weights,
}

impl Model {
    /// Checks a file and hands its weights to the device: borrowed as they lie where the device
    /// can, copied otherwise.
    ///
    /// # Errors
    /// [`ModelError::Problems`] before anything is loaded, [`ModelError::Device`] where the memory
    /// does not suffice.
    pub fn load(device: &Device, file: &Gguf) -> Result<Self, ModelError> {
        Self::load_with(device, file, |_, _| ControlFlow::Continue(()))
    }

    /// As [`Model::load`]. `progress` is called with the bytes done and the bytes in total, before
    /// each tensor and at the end; it may stop the loading.
    ///
    /// # Errors
    /// As [`Model::load`], and [`ModelError::Cancelled`].
    pub fn load_with(
        device: &Device,
        file: &Gguf,
        progress: impl FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Self, ModelError> {
        let config = Preflight::of(file).into_config()?;
        let named = weights::import(device, file, &config, progress)?;
        Self::assemble(device, config, named)
    }

    pub(crate) fn assemble(
        device: &Device,
        config: ModelConfig,
        named: weights::Named,
    ) -> Result<Self, ModelError> {
        let weights = Weights::assemble(device, &config, named)?;
        Ok(Self { inner: Arc::new(Inner { device: device.clone(), config, weights }) })
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// The device its weights are on.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.inner.weights
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("architecture", &self.inner.config.architecture)
            .field("layers", &self.inner.config.layers.len())
            .field("device", &self.inner.device)
            .finish()
    }
}
