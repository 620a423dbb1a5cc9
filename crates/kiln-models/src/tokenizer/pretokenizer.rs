//! Cutting text into words before byte-pair merges, by the rules `tokenizer.ggml.pre` names.

use regex::Regex;

use super::TokenizerError;

/// What happens to white space before a word.
///
/// The published expressions end in `\s+(?!\S)|\s+`: white space in front of a word keeps its last
/// character for the word. The engine used here runs in linear time and has no look-ahead, so the
/// expressions end in `\s+` and the last character is given back afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// The expression has no such ending.
    Kept,
    /// Every match that is white space gives back.
    GivenBack,
    /// As above, except a match that ends a line: another alternative made it.
    GivenBackInLine,
}

/// One expression. Its matches and the text between them become the pieces for the next stage.
#[derive(Debug, Clone, Copy)]
struct Rule {
    pattern: &'static str,
    spaces: Spaces,
}

const fn rule(pattern: &'static str, spaces: Spaces) -> Rule {
    Rule { pattern, spaces }
}

/// Words, digits, symbols and line ends, with contractions split off without regard to case.
macro_rules! words {
    (letters $letters:literal, digits $digits:literal, symbols $symbols:literal, lines $lines:literal) => {
        rule(
            concat!(
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|",
                $letters,
                "|",
                $digits,
                "|",
                $symbols,
                "|",
                $lines,
                r"|\s+"
            ),
            Spaces::GivenBackInLine,
        )
    };
}

/// Words cut where the case falls, an optional contraction at their end.
macro_rules! cased_words {
    (suffix $suffix:literal, digits $digits:literal) => {
        rule(
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
                $suffix,
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
                $suffix,
                "|",
                $digits,
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
            ),
            Spaces::GivenBackInLine,
        )
    };
}

const GPT2: Rule =
    rule(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", Spaces::GivenBack);
const LLAMA3: Rule = words!(
    letters r"[^\r\n\p{L}\p{N}]?\p{L}+",
    digits r"\p{N}{1,3}",
    symbols r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    lines r"\s*[\r\n]+"
);
const QWEN2: Rule = words!(
    letters r"[^\r\n\p{L}\p{N}]?\p{L}+",
    digits r"\p{N}",
    symbols r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    lines r"\s*[\r\n]+"
);
const QWEN35: Rule = words!(
    letters r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    digits r"\p{N}",
    symbols r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    lines r"\s*[\r\n]+"
);
const SEED_CODER: Rule = words!(
    letters r"[^\r\n\p{L}\p{N}]?\p{L}+",
    digits r"\p{N}",
    symbols r" ?[^\s\p{L}\p{N}\r\n]+",
    lines r"\s*[\r\n]+"
);
const BAILING: Rule = words!(
    letters r"[^\r\n\p{L}\p{N}]?\p{L}+",
    digits r"\p{N}",
    symbols r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    lines r"\s*[\r\n]"
);
const MINICPM5: Rule = words!(
    letters r"[^\r\n\p{L}\p{N}]?\p{L}+",
    digits r"\p{N}+",
    symbols r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    lines r"\s*[\r\n]+"
);
const TEKKEN: Rule = cased_words!(suffix "", digits r"\p{N}");
const GPT4O: Rule = cased_words!(
    suffix r"(?:'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE]))?",
    digits r"\p{N}{1,3}"
);
const DEEPSEEK_V3: Rule = rule(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"##,
    Spaces::GivenBackInLine,
);
const DEEPSEEK_LLM_LETTERS: Rule = kept(concat!(
    r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}",
    r"\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}",
    r"\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}",
    r"\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}",
    r"\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}",
    r"\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}",
    r"\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}",
    r"\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
    r"\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}",
    r"\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
    r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}",
    r"\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
    r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}",
    r"\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}",
    r"\u{1E900}-\u{1E943}]+"
));
const DEEPSEEK_CJK: Rule = kept(r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+");
const PHRASES: Rule = kept(r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+");
const LINES: Rule = kept(r"[^\n]+|\n+");
const DIGIT: Rule = kept(r"\p{N}");
const THREE_DIGITS: Rule = kept(r"\p{N}{1,3}");

const fn kept(pattern: &'static str) -> Rule {
    rule(pattern, Spaces::Kept)
}

/// The pre-tokenizers that share their rules.
struct Family {
    names: &'static [&'static str],
    rules: &'static [Rule],
    /// A word that is a token is taken as it is, without merges.
    ignore_merges: bool,
    /// The default of `add_bos_token`.
    add_bos: bool,
}

const fn family(names: &'static [&'static str], rules: &'static [Rule]) -> Family {
    Family { names, rules, ignore_merges: false, add_bos: false }
}

const DEFAULT: &str = "default";

static FAMILIES: &[Family] = &[
    family(
        &[DEFAULT],
        &[kept(r"[\p{P}$+<=>^~|]+"), GPT2, kept(r"\p{N}+"), kept(r"[0-9][0-9][0-9]")],
    ),
    family(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    family(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[DIGIT, GPT2],
    ),
    family(&["falcon"], &[kept(r"[\p{P}$+<=>^~|`]+"), GPT2, kept(r"[0-9][0-9][0-9]")]),
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        rules: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Family { names: &["glm4", "glm5"], rules: &[LLAMA3], ignore_merges: true, add_bos: false },
    family(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    family(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    family(&["qwen35"], &[QWEN35]),
    family(&["laguna"], &[LINES, QWEN2]),
    family(&["seed-coder"], &[SEED_CODER]),
    family(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    Family {
        names: &["minicpm5"],
        rules: &[THREE_DIGITS, MINICPM5],
        ignore_merges: true,
        add_bos: false,
    },
    Family { names: &["tekken"], rules: &[TEKKEN], ignore_merges: true, add_bos: true },
    family(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    family(
        &["deepseek-llm"],
        &[
            kept(r"[\r\n]"),
            DEEPSEEK_LLM_LETTERS,
            kept(
                r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+",
            ),
            kept(r"\s+$"),
            DEEPSEEK_CJK,
            kept(r"\p{N}+"),
        ],
    ),
    family(
        &["deepseek-coder"],
        &[kept(r"[\r\n]"), kept(r"\s?\p{L}+"), kept(r"\s?\p{P}+"), DEEPSEEK_CJK, DIGIT],
    ),
    family(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[
            THREE_DIGITS,
            kept(r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+"),
            DEEPSEEK_V3,
        ],
    ),
    family(&["poro-chat", "bloom", "gpt3-finnish"], &[PHRASES]),
    family(&["viking"], &[PHRASES, DIGIT]),
    Family { names: &["gemma4"], rules: &[LINES], ignore_merges: false, add_bos: true },
];

/// A compiled family.
#[derive(Debug, Clone)]
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
}

#[derive(Debug, Clone)]
struct Stage {
    regex: Regex,
    spaces: Spaces,
}

impl PreTokenizer {
    /// The rules for `pre`; the default ones where the file names none.
    pub(super) fn new(pre: Option<&str>) -> Result<Self, TokenizerError> {
        let pre = pre.unwrap_or(DEFAULT);
        let Some(family) = FAMILIES.iter().find(|family| family.names.contains(&pre)) else {
            return Err(TokenizerError::UnknownPreTokenizer {
                pre: pre.into(),
                known: FAMILIES
                    .iter()
                    .flat_map(|f| f.names)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", "),
            });
        };
        let stages = family
            .rules
            .iter()
            .map(|rule| match Regex::new(rule.pattern) {
                Ok(regex) => Ok(Stage { regex, spaces: rule.spaces }),
                Err(error) => {
                    Err(TokenizerError::Build { part: "pre-tokenizer", reason: error.to_string() })
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { stages, ignore_merges: family.ignore_merges, add_bos: family.add_bos })
    }

    /// The words of `text`, which together are the whole text, as the offsets where they end.
    pub(super) fn split(&self, text: &str) -> Vec<usize> {
        let mut ends = if text.is_empty() { Vec::new() } else { vec![text.len()] };
        for stage in &self.stages {
            let mut next = Vec::with_capacity(ends.len());
            let mut start = 0;
            for end in ends {
                stage.split(&text[start..end], |at| next.push(start + at));
                start = end;
            }
            ends = next;
        }
        ends
    }
}

impl Stage {
    fn split(&self, text: &str, mut cut: impl FnMut(usize)) {
        let mut at = 0;
        while let Some(found) = self.regex.find_at(text, at) {
            if found.start() > at {
                cut(found.start());
            }
            at = self.end(text, found.start(), found.end());
            cut(at);
        }
        if at < text.len() {
            cut(text.len());
        }
    }

    /// Where the match `start..end` ends once it has given back its last space.
    fn end(&self, text: &str, start: usize, end: usize) -> usize {
        let Some(last) = text[start..end].chars().next_back() else { return end };
        let gives_back = match self.spaces {
            Spaces::Kept => false,
            Spaces::GivenBack => last.is_whitespace(),
            Spaces::GivenBackInLine => last.is_whitespace() && last != '\n' && last != '\r',
        };
        let kept = end - last.len_utf8();
        if gives_back && end < text.len() && kept > start { kept } else { end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(pre: &str, text: &'a str) -> Vec<&'a str> {
        let mut start = 0;
        let ends = PreTokenizer::new(Some(pre)).unwrap().split(text);
        ends.into_iter().map(|end| &text[std::mem::replace(&mut start, end)..end]).collect()
    }

    #[test]
    fn families_differ_in_digits_and_lines() {
        let text = "It's  12345 x\n\n y";
        assert_eq!(words("gpt-2", text), ["It", "'s", " ", " 12345", " x", "\n\n", " y"]);
        assert_eq!(
            words("llama-bpe", text),
            ["It", "'s", " ", " ", "123", "45", " x", "\n\n", " y"]
        );
        assert_eq!(
            words("qwen2", text),
            ["It", "'s", " ", " ", "1", "2", "3", "4", "5", " x", "\n\n", " y"]
        );
        assert_eq!(
            words("smollm", text),
            ["It", "'s", "  ", "1", "2", "3", "4", "5", " x", "\n\n", " y"]
        );
        assert_eq!(words("gemma4", text), ["It's  12345 x", "\n\n", " y"]);
    }

    #[test]
    fn contractions_ignore_case_where_the_family_says_so() {
        assert_eq!(words("gpt-2", "I'LL we'll"), ["I", "'", "LL", " we", "'ll"]);
        assert_eq!(words("llama-bpe", "I'LL we'll"), ["I", "'LL", " we", "'ll"]);
        assert_eq!(words("gpt-4o", "I'LL HELLOworld"), ["I'LL", " HELLOworld"]);
        assert_eq!(words("tekken", "helloWorld"), ["hello", "World"]);
    }

    #[test]
    fn every_name_compiles_and_is_unique() {
        let mut seen = std::collections::HashSet::new();
        for name in FAMILIES.iter().flat_map(|family| family.names) {
            assert!(seen.insert(name), "{name} twice");
            PreTokenizer::new(Some(name)).unwrap();
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let error = PreTokenizer::new(Some("nonsense")).unwrap_err();
        let TokenizerError::UnknownPreTokenizer { pre, known } = error else { panic!("{error}") };
        assert_eq!(pre, "nonsense");
        assert!(known.contains("llama-bpe") && known.contains("qwen2"));
    }

    /// The published expression, look-ahead and all, in an engine that backtracks.
    fn published(rule: &Rule) -> fancy_regex::Regex {
        let pattern = match rule.spaces {
            Spaces::Kept => rule.pattern.to_owned(),
            _ => rule.pattern.replace(r"|\s+", r"|\s+(?!\S)|\s+"),
        };
        fancy_regex::Regex::new(&pattern).unwrap()
    }

    #[test]
    fn giving_back_a_space_equals_the_look_ahead() {
        let alphabet: Vec<char> =
            "ab XYz  \t\n\r\u{a0}\u{3000}09٣½'sS'll.,!/<|>_é\u{301}中文글ǅ€😀\u{200d}\u{1}"
                .chars()
                .collect();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for family in FAMILIES {
            for rule in family.rules {
                let stage = Stage { regex: Regex::new(rule.pattern).unwrap(), spaces: rule.spaces };
                let oracle = published(rule);
                for _ in 0..300 {
                    let text: String =
                        (0..random(24)).map(|_| alphabet[random(alphabet.len())]).collect();
                    let mut ours = Vec::new();
                    stage.split(&text, |end| ours.push(end));
                    let mut theirs = Vec::new();
                    let mut at = 0;
                    for found in oracle.find_iter(&text).map(Result::unwrap) {
                        if found.start() > at {
                            theirs.push(found.start());
                        }
                        at = found.end();
                        theirs.push(at);
                    }
                    if at < text.len() {
                        theirs.push(text.len());
                    }
                    assert_eq!(ours, theirs, "{:?} on {text:?}", family.names);
                }
            }
        }
    }
}
