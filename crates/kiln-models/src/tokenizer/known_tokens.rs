//! Tokens that are known by their text: where generation stops, and marks.

use super::Vocabulary;

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

/// Texts that mark the parts of a fill-in-the-middle prompt.
const FILL_MARKS: &[&str] = &[
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<fim-prefix>",
    "<fim-suffix>",
    "<fim-middle>",
    "<fim_prefix>",
    "<fim_suffix>",
    "<fim_middle>",
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
    "<PRE>",
    "<SUF>",
    "<MID>",
    "▁<PRE>",
    "▁<SUF>",
    "▁<MID>",
    "<|code_prefix|>",
    "<|code_suffix|>",
    "<|code_middle|>",
    "<|prefix|>",
    "<|suffix|>",
    "<|middle|>",
];

/// Tokens known by their text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KnownTokens {
    /// Where generation stops, ascending.
    pub(super) ends: Vec<u32>,
    /// Marks that are control tokens whatever the file calls them, ascending.
    pub(super) marks: Vec<u32>,
}

impl KnownTokens {
    /// Finds them, less those that only look like one in this vocabulary.
    pub(super) fn find(vocabulary: &Vocabulary) -> Self {
        let mut ends: Vec<(&[u8], u32)> = Vec::new();
        let mut marks = Vec::new();
        let mut plamo = false;
        for (id, text) in (0u32..).zip(vocabulary.tokens.iter()) {
            if !text.first().is_some_and(|first| FIRST_BYTES.contains(first)) {
                continue;
            }
            let is_one_of = |known: &[&str]| known.iter().any(|known| known.as_bytes() == text);
            if is_one_of(ENDS) || is_one_of(FILL_ENDS) {
                ends.push((text, id));
            } else if is_one_of(FILL_MARKS) {
                marks.push(id);
            }
            plamo |= text == b"<|plamo:eos|>";
        }
        let has = |text: &[u8]| ends.iter().any(|(known, _)| *known == text);
        // These vocabularies end a turn with the other tokens, `<|end|>` ends a part of a message.
        let end_is_inner =
            (has(b"<|return|>") && has(b"<|call|>")) || (has(b"<|calls|>") && has(b"<|flush|>"));
        // Here `</s>` is markup that the model may write.
        let s_is_markup = has(b"<|tool_response>") || plamo;
        let is_normal = |id: u32| vocabulary.token_types.get(id as usize) == Some(&1);
        let any_normal = ends.iter().any(|(_, id)| is_normal(*id));
        let words = if any_normal { words_among_ends(vocabulary) } else { Vec::new() };
        ends.retain(|(text, id)| match *text {
            b"<|end|>" if end_is_inner => false,
            b"</s>" if s_is_markup => false,
            _ => !(is_normal(*id) && words.iter().any(|word| word.as_bytes() == *text)),
        });
        Self { ends: ends.into_iter().map(|(_, id)| id).collect(), marks }
    }
}

/// The first bytes of all texts above.
const FIRST_BYTES: &[u8] = "<[_▁".as_bytes();

/// The end texts that merges form: text of this look occurred in the training text, so that an
/// ordinary token for it is a word.
fn words_among_ends(vocabulary: &Vocabulary) -> Vec<&'static str> {
    let forms = |merge: &[u8], text: &[u8]| {
        merge.len() == text.len() + 1
            && (1..text.len()).any(|cut| {
                merge[cut] == b' ' && merge[..cut] == text[..cut] && merge[cut + 1..] == text[cut..]
            })
    };
    let known = || ENDS.iter().chain(FILL_ENDS);
    let mut words = Vec::new();
    for merge in vocabulary.merges.iter() {
        words.extend(known().filter(|text| forms(merge, text.as_bytes())));
    }
    words.sort_unstable();
    words.dedup();
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(texts: &[&str]) -> Vec<u32> {
        let tokens = texts.iter().collect();
        KnownTokens::find(&Vocabulary { tokens, ..Vocabulary::default() }).ends
    }

    #[test]
    fn ends_are_known_by_text() {
        assert_eq!(ends(&["a", "<|im_end|>", "</s>", "<|eot_id|>"]), [1, 2, 3]);
        assert_eq!(ends(&["<|end|>", "x"]), [0]);
        assert_eq!(ends(&["end", "<end>"]), Vec::<u32>::new());
    }

    #[test]
    fn some_ends_are_not_ends_beside_others() {
        assert_eq!(ends(&["<|end|>", "<|return|>", "<|call|>"]), [1, 2]);
        assert_eq!(ends(&["</s>", "<turn|>", "<|tool_response>"]), [1, 2]);
        assert_eq!(ends(&["</s>", "<|plamo:eos|>"]), Vec::<u32>::new());
    }

    #[test]
    fn a_word_of_the_training_text_is_no_end() {
        let mut vocabulary = Vocabulary {
            tokens: ["</s", ">", "</s>", "<fim_prefix>"].into_iter().collect(),
            token_types: vec![1, 1, 1, 4],
            merges: ["</s >"].into_iter().collect(),
            ..Vocabulary::default()
        };
        let marks = vec![3];
        assert_eq!(
            KnownTokens::find(&vocabulary),
            KnownTokens { ends: Vec::new(), marks: marks.clone() }
        );
        vocabulary.token_types[2] = 3;
        assert_eq!(KnownTokens::find(&vocabulary), KnownTokens { ends: vec![2], marks });
    }
}
