//! The model that ships with the command, for a first try without a download.

use std::sync::Arc;

use kiln::SharedBytes;
use kiln::format::Gguf;

use crate::error::CliError;
use crate::output;

/// What the model is called where a file would have its name.
pub(crate) const NAME: &str = "the story model";

/// GGUF files are aligned to at most a page when they are mapped; so is this one.
#[repr(C, align(4096))]
struct PageAligned<T: ?Sized>(T);

static MODEL: &PageAligned<[u8]> = &PageAligned(*include_bytes!("../../../assets/story.gguf"));

/// Opens the model, and says on standard error that it is used.
pub(crate) fn open() -> Result<Gguf, CliError> {
    let note = format!(
        "kiln: using {NAME} that ships with kiln ({}); give -m FILE for another",
        output::bytes(MODEL.0.len() as u64)
    );
    eprintln!("{}", output::Style::of_stderr().quiet(&note));
    Ok(Gguf::from_bytes(SharedBytes::new(Arc::new(&MODEL.0)))?)
}
