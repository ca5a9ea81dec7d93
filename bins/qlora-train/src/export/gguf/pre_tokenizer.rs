//! llama.cpp's name for the way in which a byte-level tokenizer splits text before it merges (`tokenizer.ggml.pre`).
//!
//! llama.cpp's converter goes by a hash of the tokens of a fixed text, and so does this. A tokenizer that is not on the
//! list is known by its `pre_tokenizer` in tokenizer.json, where that is one whose expressions llama.cpp has.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::data::ChatTokenizer;
use crate::error::Result;
use crate::files::hash::hex;

/// The text whose tokens llama.cpp's converter hashes.
const PROBE: &str = "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u{200d}🌫️ (multiple emojis \
     concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 \
     ?我想在apple工作1314151天～ ------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told \
     he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL";

/// SHA-256 of the tokens of [`PROBE`] as a list in Python prints, of tokenizers of the families that are written.
const BY_HASH: [(&str, &str); 27] = [
    ("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5", "llama-bpe"),
    ("c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d", "smaug-bpe"),
    ("9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e", "falcon3"),
    ("e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea", "qwen2"),
    ("d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c", "qwen2"),
    ("b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5", "deepseek-r1-qwen"),
    ("63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e", "tekken"),
    ("0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3", "pixtral"),
    ("855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249", "smollm"),
    ("6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff", "refact"),
    ("d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec", "seed-coder"),
    ("049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754", "deepseek-llm"),
    ("347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821", "deepseek-coder"),
    ("877081d19cf6996e2c4ff0e1236341e9b7bde288f5311a56a937f0afbbb3aeb5", "deepseek-v3"),
    ("1431a23e583c97432bc230bff598d103ddb5a1f89960c8f1d1051aaa944d0b35", "minerva-7b"),
    ("d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1", "megrez"),
    ("3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454", "gpt-2"),
    ("35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34", "starcoder"),
    ("32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3", "stablelm2"),
    ("7fc505bd3104ca1083b150b17d088b59534ede9bde81f0dd2090967d7fe52cee", "viking"),
    ("c7ea5862a53e4272c035c8238367063e2b270d51faa48c0f09e9d5b54746c360", "poro-chat"),
    ("1994ffd01900cfb37395608534236ecd63f2bd5995d6cb1004dda1af50240f15", "trillion"),
    ("b0a6b1c0bd5998ebd9df08611efde34a4ff03faed45ae09c43e6b31ebd4b94cf", "a.x-4.0"),
    ("f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4", "midm-2.0"),
    ("36f3066e97b7f3994b379aaacde306c1444c6ae84e81a5ae3cd2b7ed3b8c42d4", "minicpm5"),
    ("b6dc8df998e1cfbdc4eac8243701a65afe638679230920b50d6f17d81c098166", "olmo"),
    ("a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e", "dbrx"),
];

/// The expressions of Llama 3, Qwen2, Mistral Nemo and GPT-4o (Phi-4 mini).
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's name of the last, whose own expression is close to it.
pub(super) const GPT4O_NAME: &str = "gpt-4o";

/// A part of a `pre_tokenizer`.
#[derive(Debug, PartialEq)]
enum Part<'a> {
    /// Each digit alone
    Digits,
    Expression(&'a str),
    /// Bytes as characters, cut by GPT-2's expression first.
    Gpt2,
    /// Bytes as characters
    Bytes,
    Other,
}

/// llama.cpp's name for the way in which `tokenizer` splits text. `None`: llama.cpp has no way that is known to be the
/// same.
pub(super) fn name(
    tokenizer: &ChatTokenizer,
    pre_tokenizer: &Value,
    ignore_merges: bool,
) -> Result<Option<&'static str>> {
    let list: Vec<String> = tokenizer.encode_prompt(PROBE)?.iter().map(u32::to_string).collect();
    let hash = hex(Sha256::digest(format!("[{}]", list.join(", "))));
    let listed = BY_HASH.iter().find(|(known, _)| *known == hash).map(|(_, name)| *name);
    Ok(listed.or_else(|| by_parts(&parts(pre_tokenizer), ignore_merges)))
}

/// llama.cpp takes a piece that is a token whole (`ignore_merges`) where the name says so.
fn by_parts(parts: &[Part], ignore_merges: bool) -> Option<&'static str> {
    match (parts, ignore_merges) {
        ([Part::Gpt2], false) => Some("gpt-2"),
        ([Part::Digits, Part::Gpt2], false) => Some("smollm"),
        ([Part::Expression(expression), Part::Bytes], _) => match (*expression, ignore_merges) {
            (LLAMA3, true) => Some("llama-bpe"),
            (LLAMA3, false) => Some("smaug-bpe"),
            (QWEN2, false) => Some("qwen2"),
            (TEKKEN, true) => Some("tekken"),
            (GPT4O, false) => Some(GPT4O_NAME),
            _ => None,
        },
        _ => None,
    }
}

fn parts(pre_tokenizer: &Value) -> Vec<Part<'_>> {
    let kind = pre_tokenizer.get("type").and_then(Value::as_str);
    let flag = |key: &str, default: bool| pre_tokenizer.get(key).map_or(Some(default), Value::as_bool);
    let text = |key: &str| pre_tokenizer.get(key).and_then(Value::as_str);
    match kind {
        Some("Sequence") => {
            let inner = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
            inner.into_iter().flatten().flat_map(parts).collect()
        }
        Some("Digits") if flag("individual_digits", false) == Some(true) => vec![Part::Digits],
        Some("ByteLevel") if flag("add_prefix_space", true) == Some(false) => {
            vec![if flag("use_regex", true) == Some(true) { Part::Gpt2 } else { Part::Bytes }]
        }
        Some("Split") => {
            // Both settings mean that each match is a piece.
            let isolated = text("behavior") == Some("Isolated") && flag("invert", false) == Some(false);
            let kept = text("behavior") == Some("Removed") && flag("invert", false) == Some(true);
            let expression = pre_tokenizer.pointer("/pattern/Regex").and_then(Value::as_str);
            vec![expression.filter(|_| isolated || kept).map_or(Part::Other, Part::Expression)]
        }
        _ => vec![Part::Other],
    }
}

#[cfg(test)]
mod tests;
