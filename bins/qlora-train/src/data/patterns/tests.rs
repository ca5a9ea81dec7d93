use super::*;
use serde_json::json;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn file(normalizer: Value, pre_tokenizer: Value) -> Vec<u8> {
    let letters: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (char::from(byte).to_string(), json!(byte))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
        "decoder": null, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "vocab": letters, "merges": [], "unk_token": "?"},
    });
    file.to_string().into_bytes()
}

fn split(source: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": source}, "behavior": behavior, "invert": invert})
}

fn byte_level(prefix: bool, regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex})
}

/// Parts of every kind: alone, in a sequence, and in a sequence within one.
fn parts() -> Vec<Value> {
    let mut parts = vec![
        split(LLAMA3, "Isolated", false),
        split(LLAMA3, "Removed", true),
        split(r"\s+(?!\S)", "MergedWithPrevious", false),
        byte_level(false, true),
        byte_level(true, true),
    ];
    let within = parts.clone();
    for part in within {
        let sequence = |parts: Vec<&Value>| json!({"type": "Sequence", "pretokenizers": parts});
        let inner = sequence(vec![&part, &byte_level(false, false)]);
        parts.extend([sequence(vec![&json!({"type": "Digits", "individual_digits": true}), &inner]), inner]);
    }
    parts
}

#[test]
fn texts_get_the_tokens_and_offsets_of_the_library() {
    let texts = ["", "a", " Hello  world's\n\n 123456 x \t ", "é–ü 💡\r\n  ", &" ".repeat(900), "'LL it's 7\n"];
    for part in parts() {
        for normalizer in [Value::Null, json!({"type": "Replace", "pattern": {"Regex": r"\s(?=\d)"}, "content": "_"})] {
            let bytes = file(normalizer, part.clone());
            let ours = Tokenizer::from_bytes(&bytes).unwrap();
            let library = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
            for text in texts {
                let (ours, library) = (ours.encode(text, true).unwrap(), library.encode(text, true).unwrap());
                assert_eq!(ours, library, "{part} {text:?}");
            }
        }
    }
}

/// The pieces of a text's parts are those of the whole text, wherever it is cut.
#[test]
fn texts_that_are_cut_have_the_pieces_of_the_whole() {
    use super::super::cuts::is_place;
    use qlora_kernels::rng::RngStream;
    use tokenizers::{Normalizer as _, OffsetReferential, OffsetType, PreTokenizer as _};
    let words = [
        "a", "b", "Z", "'s", "'LL", " ", " ", "  ", "\n", "\n", "\r", "\t", ".", "!\n", "。", "第", "一", "é",
        "e\u{301}", "\u{301}", "7", "42", "\u{3000}", "/", "_", "🙂", "ß", "İ", "_x", "か", "д", "가", "ि", "'", "/\n",
    ];
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "pretokenizers": parts});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let punctuation = json!({"type": "Punctuation", "behavior": "Isolated"});
    let mut cuttable: Vec<Value> = OF_WORDS.iter().map(|source| split(source, "Isolated", false)).collect();
    cuttable.extend(OF_WORDS.iter().map(|source| split(source, "Removed", true)));
    cuttable.extend(["Whitespace", "WhitespaceSplit", "BertPreTokenizer"].map(|name| json!({"type": name})));
    cuttable.push(byte_level(false, true));
    cuttable.push(sequence(vec![digits.clone(), byte_level(false, true)]));
    cuttable.push(sequence(vec![punctuation, split(OF_WORDS[1], "Isolated", false), byte_level(false, false)]));
    let normalizers = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"].map(|name| json!({"type": name}));
    let pieces = |tokenizer: &Tokenizer, text: &str, from: usize| -> Vec<(String, usize, usize)> {
        let mut text = NormalizedString::from(text);
        if let Some(normalizer) = tokenizer.get_normalizer() {
            normalizer.normalize(&mut text).unwrap();
        }
        let mut text = PreTokenizedString::from(text);
        tokenizer.get_pre_tokenizer().unwrap().pre_tokenize(&mut text).unwrap();
        let splits = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, (start, end), _)| (piece.to_owned(), start + from, end + from)).collect()
    };
    let mut stream = RngStream::new(1, 2);
    let mut cuts = 0;
    for (at, part) in cuttable.iter().enumerate() {
        let normalizer = if at % 2 == 0 { Value::Null } else { normalizers[at % normalizers.len()].clone() };
        let tokenizer = Tokenizer::from_bytes(file(normalizer, part.clone())).unwrap();
        assert!(may_cut(&tokenizer), "{part}");
        for _ in 0..1500 {
            let text: String = (0..16).map(|_| words[stream.below(words.len() as u32) as usize]).collect();
            let whole = pieces(&tokenizer, &text, 0);
            for cut in (1..text.len()).filter(|&at| text.is_char_boundary(at) && is_place(&text, at)) {
                let (left, right) = text.split_at(cut);
                let parts = [pieces(&tokenizer, left, 0), pieces(&tokenizer, right, cut)].concat();
                assert_eq!(parts, whole, "{part} {left:?} {right:?}");
                cuts += 1;
            }
        }
    }
    assert!(cuts > 4000, "{cuts}");
}

#[test]
fn tokenizers_that_look_across_words_are_not_cut() {
    let prefix = json!({"type": "Prepend", "prepend": "_"});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let words = split(OF_WORDS[1], "Isolated", false);
    for (normalizer, part) in [
        (Value::Null, Value::Null),
        (prefix, words.clone()),
        (Value::Null, metaspace),
        (Value::Null, byte_level(true, true)),
        (Value::Null, byte_level(false, false)),
        (Value::Null, split(r"\s+", "Isolated", false)),
        (Value::Null, split(OF_WORDS[1], "MergedWithNext", false)),
    ] {
        let tokenizer = Tokenizer::from_bytes(file(normalizer.clone(), part.clone())).unwrap();
        assert!(!may_cut(&tokenizer), "{normalizer} {part}");
    }
    let with_token = |token: AddedToken| {
        let mut tokenizer = Tokenizer::from_bytes(file(Value::Null, words.clone())).unwrap();
        tokenizer.add_tokens(&[token]);
        may_cut(&tokenizer)
    };
    assert!(with_token(AddedToken::from("<|im_end|>", true)) && with_token(AddedToken::from("  ", false)));
    assert!(!with_token(AddedToken::from("<mask>", true).lstrip(true)));
    assert!(!with_token(AddedToken::from("new york", false)) && !with_token(AddedToken::from("x", false).rstrip(true)));
}

#[test]
fn what_a_normalizer_makes_is_bounded() {
    let replace = json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "y".repeat(1 << 20)});
    let tokenizer = Tokenizer::from_bytes(file(replace, split(OF_WORDS[1], "Isolated", false))).unwrap();
    let encode = |text: &str| checked(|| tokenizer.encode(text, false));
    let why = encode(&"a".repeat(100)).unwrap_err().to_string();
    assert!(why.contains("(a) makes more than 12 times as much of a text of 100 bytes"), "{why}");
    assert!(encode(&"b".repeat(100)).is_ok());
}

/// Parts that multiply a text, each in its own way, and those that do so together.
#[test]
fn no_part_of_a_normalizer_makes_much_of_a_text() {
    let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
    let text = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prepend = |text: &str| json!({"type": "Prepend", "prepend": text});
    let long = "y".repeat(1 << 20);
    let words = || split(OF_WORDS[1], "Isolated", false);
    for normalizer in [
        text("a", &long),
        text("", &long),
        prepend(&long),
        sequence(vec![text("a", "aa"); 40]),
        sequence(vec![prepend(&long[..1000]); 1000]),
        sequence(vec![json!({"type": "ByteLevel"}); 40]),
    ] {
        let tokenizer = Tokenizer::from_bytes(file(normalizer.clone(), words())).unwrap();
        let encode = |text: &str| checked(|| tokenizer.encode(text, false));
        let why = encode(&"aé".repeat(100)).unwrap_err().to_string();
        assert!(why.contains("times as much of a text of 300 bytes"), "{why}");
    }
    // Normalizers of real models.
    for normalizer in [
        text(" ", "▁"),
        sequence(vec![prepend("▁"), text(" ", "▁")]),
        sequence(vec![json!({"type": "NFKC"}), text("\n", "▁▁▁")]),
    ] {
        let tokenizer = Tokenizer::from_bytes(file(normalizer, words())).unwrap();
        assert!(checked(|| tokenizer.encode("ﷺ \n".repeat(5000), false)).is_ok());
    }
    let huge = json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="});
    let why = Tokenizer::from_bytes(file(huge, words())).unwrap_err().to_string();
    assert!(why.contains("precompiled_charsmap"), "{why}");
}

#[test]
fn a_search_that_gives_up_is_an_error_in_every_part() {
    let long = format!("a{}b", " ".repeat(1_100_000));
    for part in parts() {
        let tokenizer = Tokenizer::from_bytes(file(Value::Null, part.clone())).unwrap();
        let why = tokenizer.encode(long.as_str(), false).unwrap_err().to_string();
        assert!(why.contains("gives up on") && why.contains("bytes of text that begin with"), "{part}: {why}");
    }
    let replace = json!({"type": "Replace", "pattern": {"Regex": r"\s+(?!\S)"}, "content": ""});
    for normalizer in [replace.clone(), json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, replace]})] {
        let tokenizer = Tokenizer::from_bytes(file(normalizer, Value::Null)).unwrap();
        let encode = |text: &str| checked(|| tokenizer.encode(text, false));
        assert_eq!(encode("x  y ").unwrap().get_ids().len(), 3);
        let why = encode(&long).unwrap_err().to_string();
        assert!(why.contains(r"(\s+(?!\S))") && why.contains("1100002 bytes"), "{why}");
        // The error belongs to that text alone.
        assert!(encode("x").is_ok());
    }
}
