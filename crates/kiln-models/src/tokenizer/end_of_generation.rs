//! The tokens at which generation stops.

use super::ByteStrings;

/// Texts that end a turn or a sequence in some model family.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts that stop fill-in-the-middle output.
const FILL_ENDS: &[&str] = &[
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// The ids of those texts, ascending, less the ones that only look like an end in this vocabulary.
pub(super) fn by_text(texts: &ByteStrings) -> Vec<u32> {
    let find = |wanted: &[u8]| -> Option<u32> {
        u32::try_from(texts.iter().position(|text| text == wanted)?).ok()
    };
    let mut found: Vec<(&str, u32)> = Vec::new();
    for (id, text) in (0u32..).zip(texts.iter()) {
        let known = ENDS.iter().chain(FILL_ENDS).find(|known| known.as_bytes() == text);
        found.extend(known.map(|known| (*known, id)));
    }
    let has = |text: &str| found.iter().any(|(known, _)| *known == text);
    // These vocabularies end a turn with the other tokens; `<|end|>` ends a part of a message.
    let end_is_inner =
        (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"));
    // Here `</s>` is markup that the model may write.
    let s_is_markup = has("<|tool_response>") || find(b"<|plamo:eos|>").is_some();
    found.retain(|(text, _)| match *text {
        "<|end|>" => !end_is_inner,
        "</s>" => !s_is_markup,
        _ => true,
    });
    found.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(texts: &[&str]) -> Vec<u32> {
        by_text(&texts.iter().collect())
    }

    #[test]
    fn ends_are_known_by_text() {
        assert_eq!(ids(&["a", "<|im_end|>", "</s>", "<|eot_id|>"]), [1, 2, 3]);
        assert_eq!(ids(&["<|end|>", "x"]), [0]);
        assert_eq!(ids(&["end", "<end>"]), Vec::<u32>::new());
    }

    #[test]
    fn some_ends_are_not_ends_beside_others() {
        assert_eq!(ids(&["<|end|>", "<|return|>", "<|call|>"]), [1, 2]);
        assert_eq!(ids(&["</s>", "<turn|>", "<|tool_response>"]), [1, 2]);
        assert_eq!(ids(&["</s>", "<|plamo:eos|>"]), Vec::<u32>::new());
    }
}
