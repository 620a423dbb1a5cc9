//! Opening and loading models.

use std::ops::ControlFlow;
use std::path::Path;

use kiln::format::Gguf;
use kiln::prelude::*;
use kiln_models::tokenizer::{Tokenizer, TokenizerWarning};
use kiln_models::{Model, ModelShape, Preflight, Session, SessionOptions};

use crate::args::{self, ArithmeticArgs, DeviceArgs, ModelArg};
use crate::error::CliError;
use crate::{memory, output};

/// A model file that can be run.
pub(crate) struct Checked {
    pub(crate) file: Gguf,
    pub(crate) preflight: Preflight,
    /// Tokens of context the model was trained for.
    pub(crate) trained: usize,
}

/// Opens a model and checks its header.
pub(crate) fn open(model: &ModelArg) -> Result<Checked, CliError> {
    let file = model.open()?;
    let preflight = Preflight::of(&file);
    let trained = preflight.clone().into_config()?.context_length;
    Ok(Checked { file, preflight, trained })
}

impl Checked {
    /// The tokenizer; what may make its ids wrong is said on standard error.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, CliError> {
        let tokenizer = Tokenizer::from_gguf(&self.file)?;
        let wrong =
            |warning: &&TokenizerWarning| matches!(warning, TokenizerWarning::MissingPreTokenizer);
        for warning in tokenizer.warnings().iter().filter(wrong) {
            eprintln!("kiln: note: {warning}");
        }
        Ok(tokenizer)
    }

    /// Hands the weights to the device, with a progress bar.
    pub(crate) fn load(&self, device: &Device) -> Result<Model, CliError> {
        let bar = output::bar(0, "loading [{bar:40}] {bytes}/{total_bytes}");
        let model = Model::load_with(device, &self.file, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        Ok(model?)
    }

    /// A session on the loaded model, if there is memory for it.
    ///
    /// The header is let go before memory for the session is taken; the weights keep the file mapped.
    pub(crate) fn session(
        self,
        device: &Device,
        options: SessionOptions,
    ) -> Result<Session, CliError> {
        memory::check(&self.preflight, &options)?;
        let model = self.load(device)?;
        drop(self);
        Ok(Session::new(&model, options)?)
    }
}

/// A model from a file, or one of random weights.
#[derive(clap::Args)]
pub(crate) struct SourceArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Random weights in the shape of a known model instead of a file
    #[arg(long, value_name = "NAME", conflicts_with = "model", value_parser = shape_names())]
    shape: Option<String>,
    /// Type of the random weights
    #[arg(long, value_name = "TYPE", requires = "shape", default_value = "q4_0",
        value_parser = args::dtype(&DType::WEIGHTS))]
    quant: DType,
    #[command(flatten)]
    pub(crate) arithmetic: ArithmeticArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

fn shape_names() -> clap::builder::PossibleValuesParser {
    ModelShape::ALL.map(|shape| shape.name).into()
}

impl SourceArgs {
    /// The model file, where one is given.
    pub(crate) fn path(&self) -> Option<&str> {
        self.model.model.as_deref().and_then(Path::to_str)
    }

    /// Threads asked for.
    pub(crate) fn threads(&self) -> Option<usize> {
        self.device.threads
    }

    /// Writes the model of random weights to a file and returns its size.
    pub(crate) fn save(&self, path: &Path) -> Result<u64, CliError> {
        let shape = self.shape.as_deref().and_then(ModelShape::from_name);
        let shape = shape.ok_or_else(|| CliError::new("--save needs --shape"))?;
        Ok(shape.save(self.quant, path)?)
    }

    /// A session with a context of so many tokens, and the name of the model.
    pub(crate) fn session(&self, context: usize) -> Result<(Session, String), CliError> {
        let device = self.device.open()?;
        let options = SessionOptions {
            context: context.max(1),
            kv_dtype: self.arithmetic.kv_type,
            precision: self.arithmetic.precision(),
            ..SessionOptions::for_device(&device)
        };
        let Some(shape) = self.shape.as_deref().and_then(ModelShape::from_name) else {
            let session = open(&self.model)?.session(&device, options)?;
            return Ok((session, self.model.name()));
        };
        let blocks = shape.config().parameters() / self.quant.block_len() as u64;
        memory::check_weights(blocks.saturating_mul(self.quant.block_bytes() as u64))?;
        let model = Model::synthetic(&device, &shape, self.quant)?;
        let name = format!("{} of random {} weights", shape.name, self.quant);
        Ok((Session::new(&model, options)?, name))
    }
}
