use super::bpe::{byte_to_char, char_to_byte};
use super::*;

const TEXT: EncodeOptions = EncodeOptions { add_special: false, parse_special: false };
const ADD: EncodeOptions = EncodeOptions { add_special: true, parse_special: false };
const PARSE: EncodeOptions = EncodeOptions { add_special: false, parse_special: true };
const BOTH: EncodeOptions = EncodeOptions { add_special: true, parse_special: true };

/// Repeatable numbers for property tests.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn text(&mut self, length: usize) -> String {
        let chars: Vec<char> =
            "abcdeAB 'st\n\r\t.,!<|>_019é\u{301}中文글عر😀👩\u{200d}▁\u{a0}\u{0}".chars().collect();
        (0..length).map(|_| chars[self.below(chars.len())]).collect()
    }
}

/// A byte-level vocabulary: 256 bytes, special tokens of the given kinds from 256 on, then words.
fn byte_level(pre: &str, words: &[(&str, &str)], special: &[(&str, i32)]) -> Vocabulary {
    let spell = |text: &str| text.bytes().map(byte_to_char).collect::<String>();
    let mut tokens: ByteStrings = (0..=255).map(|b| byte_to_char(b).to_string()).collect();
    let mut token_types = vec![1; 256];
    for (text, kind) in special {
        tokens.push(text.as_bytes());
        token_types.push(*kind);
    }
    let mut merges = ByteStrings::new();
    for (left, right) in words.iter().chain(&[("~", "~")]) {
        tokens.push(spell(&format!("{left}{right}")).as_bytes());
        token_types.push(1);
        merges.push(format!("{} {}", spell(left), spell(right)).as_bytes());
    }
    Vocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        token_types,
        merges,
        ..Vocabulary::default()
    }
}

/// A SentencePiece vocabulary with byte tokens from id 3 on, then pieces with their scores.
fn sentence_piece(pieces: &[(&str, f32)]) -> Vocabulary {
    let mut vocabulary = Vocabulary {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>"].into_iter().collect(),
        scores: vec![0.0; 3 + 256],
        token_types: vec![2, 3, 3],
        ..Vocabulary::default()
    };
    for byte in 0..=255 {
        vocabulary.tokens.push(&byte_token_text(byte));
        vocabulary.token_types.push(6);
    }
    for (piece, score) in pieces {
        vocabulary.tokens.push(piece.as_bytes());
        vocabulary.scores.push(*score);
        vocabulary.token_types.push(1);
    }
    vocabulary
}

fn tokenizer(vocabulary: Vocabulary) -> Tokenizer {
    Tokenizer::new(vocabulary).unwrap()
}

fn texts(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter()
        .map(|&id| String::from_utf8_lossy(tokenizer.token_text(id).unwrap()).into_owned())
        .collect()
}

#[test]
fn the_byte_alphabet_is_a_bijection() {
    let mut seen = std::collections::HashSet::new();
    for byte in 0..=255 {
        let character = byte_to_char(byte);
        assert!(seen.insert(character));
        assert_eq!(char_to_byte(character), Some(byte));
    }
    assert_eq!(byte_to_char(b' '), 'Ġ');
    assert_eq!(byte_to_char(b'\n'), 'Ċ');
    assert_eq!(char_to_byte('中'), None);
}

#[test]
fn merges_go_by_rank_and_then_from_the_left() {
    let tokenizer =
        tokenizer(byte_level("gpt-2", &[("b", "c"), ("a", "b"), ("a", "a"), ("aa", "aa")], &[]));
    assert_eq!(texts(&tokenizer, &tokenizer.encode("abc", TEXT)), ["a", "bc"]);
    assert_eq!(texts(&tokenizer, &tokenizer.encode("aaa", TEXT)), ["aa", "a"]);
    assert_eq!(texts(&tokenizer, &tokenizer.encode("aaaaa", TEXT)), ["aaaa", "a"]);
}

#[test]
fn whole_words_skip_merges_only_where_the_rules_say_so() {
    let words = [("b", "c"), ("ab", "c"), ("a", "b")];
    let with = tokenizer(byte_level("llama-bpe", &words, &[]));
    let without = tokenizer(byte_level("qwen2", &words, &[]));
    assert_eq!(texts(&with, &with.encode("abc", TEXT)), ["abc"]);
    assert_eq!(texts(&without, &without.encode("abc", TEXT)), ["a", "bc"]);
}

#[test]
fn special_tokens_are_read_only_where_asked() {
    let vocabulary =
        byte_level("qwen2", &[], &[("<|im_end|>", 3), ("<think>", 4), ("<|im_end|><|im_end|>", 3)]);
    let tokenizer = tokenizer(vocabulary);
    let text = "a<|im_end|><think>";
    assert_eq!(tokenizer.encode(text, PARSE), [97, 256, 257]);
    let plain = tokenizer.encode(text, TEXT);
    assert!(!plain.contains(&256));
    assert_eq!(plain.last(), Some(&257));
    assert_eq!(tokenizer.encode("<|im_end|><|im_end|>", PARSE), [258], "the longest wins");
    assert_eq!(tokenizer.decode(&[97, 256, 257]), "a<think>");
    let mut decoder = tokenizer.decoder().with_special();
    assert_eq!(decoder.push(256), "<|im_end|>");
}

#[test]
fn merges_never_form_a_special_token() {
    let mut vocabulary = byte_level("gpt-2", &[("a", "b"), ("ab", "c")], &[]);
    vocabulary.token_types[257] = 3;
    let tokenizer = tokenizer(vocabulary);
    assert_eq!(texts(&tokenizer, &tokenizer.encode("abc", TEXT)), ["ab", "c"]);
    assert_eq!(tokenizer.encode("abc", PARSE), [257]);
    assert_eq!(tokenizer.warnings(), [TokenizerWarning::UnusableMerges { count: 1, first: 1 }]);
}

#[test]
fn begin_and_end_tokens_are_added_once() {
    let mut vocabulary = byte_level("llama-bpe", &[], &[("<bos>", 3), ("<eos>", 3)]);
    (vocabulary.bos, vocabulary.eos) = (Some(256), Some(257));
    let adds = tokenizer(vocabulary.clone());
    assert!(adds.adds_bos() && !adds.adds_eos());
    assert_eq!(adds.encode("a", ADD), [256, 97]);
    assert_eq!(adds.encode("a", TEXT), [97]);
    assert_eq!(adds.encode("<bos>a", BOTH), [256, 97]);
    assert_eq!(adds.encode("<bos>a", ADD).len(), 1 + "<bos>a".len());
    assert_eq!(adds.encode("", ADD), [256]);
    vocabulary.add_bos = Some(false);
    vocabulary.add_eos = Some(true);
    let ends = tokenizer(vocabulary);
    assert_eq!(ends.encode("a", ADD), [97, 257]);
    assert_eq!(ends.encode("a<eos>", BOTH), [97, 257]);
    assert_eq!(ends.encode("", ADD), [257]);
}

#[test]
fn ends_of_generation_are_a_set() {
    let mut vocabulary =
        byte_level("qwen2", &[], &[("<|endoftext|>", 3), ("<|im_end|>", 1), ("</turn>", 3)]);
    vocabulary.eos = Some(256);
    vocabulary.eot = Some(258);
    vocabulary.ends = vec![7, 9_999];
    let tokenizer = tokenizer(vocabulary);
    assert_eq!(tokenizer.end_of_generation(), [7, 256, 257, 258]);
    assert!(tokenizer.is_end_of_generation(257) && !tokenizer.is_end_of_generation(97));
    assert_eq!(tokenizer.token_kind(257), Some(TokenKind::Control), "known by its text");
    assert_eq!(tokenizer.token_bytes(257), b"");
}

#[test]
fn sentence_piece_merges_the_best_score_first() {
    let tokenizer = tokenizer(sentence_piece(&[
        ("▁", -3.0),
        ("a", -3.0),
        ("b", -3.0),
        ("ab", -1.0),
        ("▁a", -2.0),
        ("ba", -0.5),
    ]));
    assert_eq!(texts(&tokenizer, &tokenizer.encode("ab", TEXT)), ["▁", "ab"]);
    assert_eq!(texts(&tokenizer, &tokenizer.encode("aba", TEXT)), ["▁a", "ba"]);
    assert_eq!(texts(&tokenizer, &tokenizer.encode(" ab", ADD)), ["<s>", "▁", "▁", "ab"]);
    assert_eq!(tokenizer.encode("", ADD), [1]);
    assert_eq!(
        texts(&tokenizer, &tokenizer.encode("aé", TEXT)),
        ["▁a", "<0xC3>", "<0xA9>"],
        "byte fallback"
    );
    assert_eq!(texts(&tokenizer, &tokenizer.encode("a<s>a", PARSE)), ["▁a", "<s>", "▁a"]);
    assert!(!tokenizer.encode("a<s>a", TEXT).contains(&1));
}

#[test]
fn sentence_piece_spaces_come_and_go() {
    let pieces = [("▁", -1.0), ("a", -1.0), ("▁a", -0.5)];
    let with = tokenizer(sentence_piece(&pieces));
    let without =
        tokenizer(Vocabulary { add_space_prefix: Some(false), ..sentence_piece(&pieces) });
    for text in ["a", " a", "  a a", "", " ", "a\nb <s>", "é😀"] {
        assert_eq!(with.decode(&with.encode(text, ADD)), text);
        assert_eq!(without.decode(&without.encode(text, ADD)), text);
    }
    assert_eq!(texts(&without, &without.encode("a", TEXT)), ["a"]);
    let id = with.token_id("▁a").unwrap();
    let mut fresh = with.decoder();
    assert_eq!((fresh.push(1).to_owned(), fresh.push(id).to_owned()), (String::new(), "a".into()));
    assert_eq!(fresh.push(id), " a");
    assert_eq!(with.decoder().continuing().push(id), " a");
}

#[test]
fn text_without_a_token_becomes_the_unknown_token() {
    let tokenizer = tokenizer(Vocabulary {
        model: "llama".into(),
        tokens: ["<unk>", "<s>", "</s>", "▁", "a"].into_iter().collect(),
        scores: vec![0.0; 5],
        token_types: vec![2, 3, 3, 1, 1],
        ..Vocabulary::default()
    });
    assert_eq!(tokenizer.encode("aéa", TEXT), [3, 4, 0, 4]);
    assert!(
        matches!(tokenizer.warnings(), [TokenizerWarning::MissingBytes { count }] if *count == 242)
    );
}

#[test]
fn characters_with_byte_pairs() {
    let mut vocabulary = sentence_piece(&[("▁", 0.0), ("a", 0.0), ("\n\n", 0.0), ("▁a", 0.0)]);
    vocabulary.model = "gemma4".into();
    vocabulary.merges = ["▁ a"].into_iter().collect();
    vocabulary.bos = Some(1);
    let tokenizer = tokenizer(vocabulary);
    assert_eq!(
        texts(&tokenizer, &tokenizer.encode("a a\n\né", ADD)),
        ["<s>", "a", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    );
    assert_eq!(tokenizer.decode(&tokenizer.encode("a a\n\né", ADD)), "a a\n\né");
}

#[test]
fn white_space_after_special_tokens() {
    let mut vocabulary = sentence_piece(&[("▁", -1.0), ("a", -1.0)]);
    vocabulary.tokens.push(b"<|user|>");
    vocabulary.scores.push(0.0);
    vocabulary.token_types.push(3);
    vocabulary.strip_after_special = true;
    let tokenizer = tokenizer(vocabulary);
    assert_eq!(
        texts(&tokenizer, &tokenizer.encode("<|user|>\n a<s> a<|user|> \n", PARSE)),
        ["<|user|>", "▁", "a", "<s>", "▁", "▁", "a", "<|user|>"]
    );
}

#[test]
fn byte_level_text_survives_the_round_trip() {
    let words = [
        ("a", "b"),
        (" ", "a"),
        ("\n", "\n"),
        ("ab", "c"),
        ("\u{301}", "e"),
        ("'", "s"),
        ("<", "|"),
    ];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for pre in ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-llm", "gpt-4o"] {
        let tokenizer = tokenizer(byte_level(pre, &words, &[("<|im_end|>", 3), ("<think>", 4)]));
        for _ in 0..200 {
            let length = random.below(40);
            let text = random.text(length);
            let ids = tokenizer.encode(&text, TEXT);
            assert_eq!(tokenizer.decode(&ids), text, "{pre}");
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.len()));
        }
    }
}

#[test]
fn long_input_takes_no_quadratic_time() {
    let words = [("a", "a"), ("aa", "aa"), (" ", " "), ("  ", "  ")];
    let byte_level = tokenizer(byte_level("llama-bpe", &words, &[("<|x|>", 3), ("<t>", 4)]));
    let pieces = [("▁", -2.0), ("▁▁", -1.0), ("a", -2.0), ("aa", -1.0), ("aaaa", -0.5)];
    let sentence_piece = tokenizer(sentence_piece(&pieces));
    for unit in ["a", " ", "<", "<|x|>", "<t>", "a ", "\n", "é", "1", "'s"] {
        let text = unit.repeat(200_000 / unit.len());
        for tokenizer in [&byte_level, &sentence_piece] {
            let ids = tokenizer.encode(&text, TEXT);
            assert_eq!(tokenizer.decode(&ids), text);
            assert!(!tokenizer.encode(&text, PARSE).is_empty());
        }
    }
}

#[test]
fn streams_never_cut_a_character() {
    for text in ["😀 é中文👩‍👩‍👧 \u{10ffff}", "aé", "𐍈", "\u{7ff}\u{800}\u{ffff}\u{10000}"]
    {
        let bytes = text.as_bytes();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut stream = Utf8Stream::default();
                let mut out = String::new();
                for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                    let piece = stream.push(part);
                    assert!(!piece.contains('\u{fffd}'));
                    out.push_str(piece);
                }
                assert_eq!((out.as_str(), stream.finish()), (text, ""));
            }
        }
    }
}

#[test]
fn streams_of_any_bytes_equal_the_lossy_text() {
    let mut random = Random(42);
    let bytes =
        [0x41, 0x80, 0xbf, 0xc0, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xed, 0xa0, 0xf0, 0x9f, 0xf4, 0xff];
    for _ in 0..5_000 {
        let length = random.below(12);
        let data: Vec<u8> = (0..length).map(|_| bytes[random.below(bytes.len())]).collect();
        let mut stream = Utf8Stream::default();
        let mut out = String::new();
        let mut rest = &data[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at(1 + random.below(rest.len()));
            out.push_str(stream.push(part));
            rest = after;
        }
        out.push_str(stream.finish());
        assert_eq!(out, String::from_utf8_lossy(&data));
        assert_eq!(stream.finish(), "", "empty after the end");
    }
}

#[test]
fn invalid_bytes_appear_as_soon_as_they_are_certain() {
    let mut stream = Utf8Stream::default();
    assert_eq!(stream.push(&[0xf0, 0x9f]), "");
    assert_eq!(stream.push(b"a"), "\u{fffd}a");
    assert_eq!(stream.push(&[0xff]), "\u{fffd}");
    assert_eq!(stream.push(&[0xe2]), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn models_and_arrays_are_checked() {
    let good = || byte_level("gpt-2", &[("a", "b")], &[]);
    let error = |vocabulary| Tokenizer::new(vocabulary).unwrap_err();
    for model in ["bert", "t5", ""] {
        let refused = error(Vocabulary { model: model.into(), ..good() });
        assert!(matches!(refused, TokenizerError::UnsupportedModel { model: m, .. } if m == model));
    }
    let empty = Vocabulary { tokens: ByteStrings::new(), ..good() };
    assert!(matches!(error(empty), TokenizerError::Empty));
    let short = Vocabulary { token_types: vec![1; 257], ..good() };
    assert!(matches!(
        error(short),
        TokenizerError::ArrayLength { array: "token_types", expected: 258, got: 257 }
    ));
    let no_merges = Vocabulary { merges: ByteStrings::new(), ..good() };
    assert!(matches!(error(no_merges), TokenizerError::MissingMerges { .. }));
    let pieces = || sentence_piece(&[("a", 0.0)]);
    let no_scores = Vocabulary { scores: Vec::new(), ..pieces() };
    assert!(matches!(error(no_scores), TokenizerError::MissingScores));
    let few_scores = Vocabulary { scores: vec![0.0; 4], ..pieces() };
    assert!(matches!(error(few_scores), TokenizerError::ArrayLength { array: "scores", .. }));
    let mut not_a_number = pieces();
    not_a_number.scores[7] = f32::NAN;
    assert!(matches!(error(not_a_number), TokenizerError::InvalidScore { token: 7 }));
    let mut huge = good();
    huge.tokens.push(&[b'x'; 2 << 20]);
    huge.token_types.push(3);
    assert!(matches!(error(huge), TokenizerError::SpecialTextTooLong { .. }));
}

#[test]
fn hostile_vocabularies_work_or_are_refused() {
    let odd = [("", 3), ("a", 1), ("a", 3), ("", 1), ("\u{142}", 99)];
    let mut vocabulary = byte_level("gpt-2", &[("c", "d")], &odd);
    for merge in ["", " ", "x", "a ", " a", "q zzz", "a b c", "a  b", "\u{ff} \u{fe}"] {
        vocabulary.merges.push(merge.as_bytes());
    }
    vocabulary.merges.push(&[0xff, b' ', 0xfe]);
    vocabulary.tokens.push(&[0xff, 0xfe]);
    vocabulary.tokens.push(&[0x80]);
    vocabulary.token_types.extend([3, 4, i32::MIN, i32::MAX]);
    vocabulary.bos = Some(u32::MAX);
    vocabulary.eos = Some(1 << 20);
    vocabulary.add_bos = Some(true);
    let tokens = vocabulary.tokens.len();
    let tokenizer = tokenizer(vocabulary);
    assert_eq!(texts(&tokenizer, &tokenizer.encode("cd é", BOTH)), ["cd", "Ġ", "Ã", "©"]);
    assert_eq!(tokenizer.decode(&[0, u32::MAX, 98]), "\u{0}b");
    assert_eq!(tokenizer.token_bytes(9_999), b"");
    assert_eq!(tokenizer.token_kind(9_999), None);
    let warnings = tokenizer.warnings();
    for expected in [
        TokenizerWarning::IdOutOfRange { key: "bos", id: u32::MAX, tokens },
        TokenizerWarning::IdOutOfRange { key: "eos", id: 1 << 20, tokens },
        TokenizerWarning::EmptyTokens { count: 2, first: 256 },
        TokenizerWarning::DuplicateTokens { count: 3, first: 257 },
        TokenizerWarning::MissingId { key: "bos" },
    ] {
        assert!(warnings.contains(&expected), "{expected} in {warnings:?}");
    }
    assert!(warnings.iter().any(|w| matches!(w, TokenizerWarning::UnusableMerges { .. })));
}

#[test]
fn vocabularies_without_types_still_know_their_special_ids() {
    let mut vocabulary = sentence_piece(&[("▁", -1.0), ("a", -1.0)]);
    vocabulary.token_types.clear();
    let tokenizer = tokenizer(vocabulary);
    assert_eq!(tokenizer.token_kind(1), Some(TokenKind::Control));
    assert_eq!(tokenizer.token_kind(0), Some(TokenKind::Unknown));
    assert_eq!(tokenizer.token_kind(3), Some(TokenKind::Byte));
    assert_eq!(tokenizer.decode(&tokenizer.encode("aé", ADD)), "aé");
}

#[test]
fn a_missing_pre_tokenizer_is_a_warning_for_the_caller() {
    let vocabulary = Vocabulary { pre: None, ..byte_level("gpt-2", &[("a", "b")], &[]) };
    assert_eq!(tokenizer(vocabulary).warnings(), [TokenizerWarning::MissingPreTokenizer]);
}

#[test]
fn legacy_end_tokens_are_only_assumed_where_they_can_be_meant() {
    let mut vocabulary = byte_level("falcon", &[("a", "b")], &[]);
    assert_eq!(tokenizer(vocabulary.clone()).eos(), None);
    vocabulary.token_types[11] = 3;
    assert_eq!(tokenizer(vocabulary).eos(), Some(11));
}

mod gguf {
    use kiln::SharedBytes;
    use kiln::format::{Gguf, GgufWriter, Value};

    use super::*;

    fn file(entries: Vec<(&str, Value<'static>)>) -> Gguf {
        let mut writer = GgufWriter::new();
        writer.insert("general.architecture", "llama").unwrap();
        for (key, value) in entries {
            writer.insert(key, value).unwrap();
        }
        let mut bytes = Vec::new();
        writer.write_to(&mut bytes).unwrap();
        Gguf::from_bytes(SharedBytes::from_vec(bytes)).unwrap()
    }

    fn entries() -> Vec<(&'static str, Value<'static>)> {
        vec![
            ("tokenizer.ggml.model", "llama".into()),
            ("tokenizer.ggml.tokens", vec!["<unk>", "<s>", "</s>", "▁", "a"].into()),
            ("tokenizer.ggml.scores", vec![0.0f32; 5].into()),
            ("tokenizer.ggml.token_type", vec![2i32, 3, 3, 1, 1].into()),
            ("tokenizer.ggml.eos_token_id", 2u64.into()),
            ("tokenizer.ggml.padding_token_id", (-1i32).into()),
            ("tokenizer.ggml.add_bos_token", false.into()),
        ]
    }

    fn with(key: &'static str, value: Value<'static>) -> Gguf {
        let mut entries = entries();
        entries.retain(|(known, _)| *known != key);
        entries.push((key, value));
        file(entries)
    }

    #[test]
    fn keys_become_fields() {
        let tokenizer = Tokenizer::from_gguf(&file(entries())).unwrap();
        assert_eq!(
            (tokenizer.eos(), tokenizer.pad(), tokenizer.adds_bos()),
            (Some(2), None, false)
        );
        assert_eq!(tokenizer.encode("a", TEXT), [3, 4]);
        let vocabulary = Vocabulary::from_gguf(&with("general.name", "Phi-3 mini".into())).unwrap();
        assert!(vocabulary.strip_after_special);
        let scores = with("tokenizer.ggml.scores", vec![1i32; 5].into());
        assert_eq!(Vocabulary::from_gguf(&scores).unwrap().scores, [1.0; 5]);
    }

    #[test]
    fn confused_types_are_refused_by_name() {
        for (key, value) in [
            ("tokenizer.ggml.tokens", Value::from(vec![1u32])),
            ("tokenizer.ggml.tokens", "one".into()),
            ("tokenizer.ggml.scores", vec![0u8; 5].into()),
            ("tokenizer.ggml.scores", vec![0i8; 20].into()),
            ("tokenizer.ggml.token_type", vec![1u8; 5].into()),
            ("tokenizer.ggml.token_type", vec![1.0f32; 5].into()),
            ("tokenizer.ggml.merges", vec![1i32].into()),
            ("tokenizer.ggml.bos_token_id", "1".into()),
            ("tokenizer.ggml.bos_token_id", 1.0f32.into()),
            ("tokenizer.ggml.add_bos_token", 1u32.into()),
            ("tokenizer.ggml.model", 1u32.into()),
        ] {
            let error = Tokenizer::from_gguf(&with(key, value)).unwrap_err();
            assert!(matches!(error, TokenizerError::Metadata(_)), "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn missing_keys_are_named() {
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.model"] {
            let mut entries = entries();
            entries.retain(|(known, _)| *known != key);
            let error = Tokenizer::from_gguf(&file(entries)).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
