//! The reader and the converter on a hand-made Llama of one layer.

use super::*;
use crate::error::Result;
use half::f16;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

/// GGUF bytes, written independently of the reader.
#[derive(Clone, Default)]
struct Writer {
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

impl Writer {
    fn entry(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.entries.retain(|(known, _)| known != key);
        self.entries.push((key.to_owned(), [kind.to_le_bytes().to_vec(), value].concat()));
    }

    fn string(&mut self, key: &str, value: &str) {
        self.entry(key, 8, text(value));
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.entry(key, 4, value.to_le_bytes().to_vec());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, 6, value.to_le_bytes().to_vec());
    }

    fn array(&mut self, key: &str, kind: u32, values: &[Vec<u8>]) {
        let header = [kind.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()].concat();
        self.entry(key, 9, [header, values.concat()].concat());
    }

    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, data: Vec<u8>) {
        self.tensors.retain(|(known, ..)| known != name);
        self.tensors.push((name.to_owned(), shape.to_vec(), kind, data));
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            out.extend(text(key));
            out.extend(value);
        }
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|length| out.extend(length.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// Values that differ between neighbors and are exact in f16, bf16 and f32.
fn pattern(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37) % 251) as f32 * 0.5 - 60.0).collect()
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// One block layer, hidden 32, 2 heads of 16, 1 kv head, intermediate 64, 6 tokens, tied embeddings.
fn tiny_llama() -> Writer {
    let mut file = Writer::default();
    file.string("general.architecture", "llama");
    for (key, value) in [
        ("llama.block_count", 1),
        ("llama.embedding_length", 32),
        ("llama.feed_forward_length", 64),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 16),
        ("llama.vocab_size", 6),
        ("llama.context_length", 128),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 0),
        ("tokenizer.ggml.unknown_token_id", 0),
        ("tokenizer.ggml.padding_token_id", 1),
    ] {
        file.u32(key, value);
    }
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file.f32("llama.rope.freq_base", 100_000.0);
    file.string("tokenizer.ggml.model", "gpt2");
    file.string("tokenizer.ggml.pre", "smollm");
    file.entry("tokenizer.ggml.add_bos_token", 7, vec![0]);
    file.array("tokenizer.ggml.tokens", 8, &["<end>", "<start>", "a", "b", "ab", "<think>"].map(text));
    file.array("tokenizer.ggml.token_type", 5, &[3i32, 3, 1, 1, 1, 4].map(|kind| kind.to_le_bytes().to_vec()));
    file.array("tokenizer.ggml.merges", 8, &[text("a b")]);
    file.string("tokenizer.chat_template", "{{ messages }}");

    let f16_bytes = |values: &[f32]| values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    let norm = f32_bytes(&pattern(32));
    file.tensor("token_embd.weight", &[6, 32], 1, f16_bytes(&pattern(6 * 32)));
    file.tensor("output_norm.weight", &[32], 0, norm.clone());
    file.tensor("blk.0.attn_norm.weight", &[32], 0, norm.clone());
    file.tensor("blk.0.ffn_norm.weight", &[32], 0, norm);
    file.tensor("blk.0.attn_q.weight", &[32, 32], 0, f32_bytes(&pattern(32 * 32)));
    file.tensor("blk.0.attn_k.weight", &[16, 32], 0, f32_bytes(&pattern(16 * 32)));
    file.tensor("blk.0.attn_v.weight", &[16, 32], 0, f32_bytes(&pattern(16 * 32)));
    file.tensor("blk.0.attn_output.weight", &[32, 32], 0, f32_bytes(&pattern(32 * 32)));
    let (one, two) = (f16::ONE.to_le_bytes(), f16::from_f32(2.0).to_le_bytes());
    let q4_1_block: Vec<u8> = [one.to_vec(), two.to_vec(), (0..16).collect()].concat();
    let q8_0_block: Vec<u8> = [two.to_vec(), (0..32).collect()].concat();
    file.tensor("blk.0.ffn_gate.weight", &[64, 32], 3, q4_1_block.repeat(64));
    file.tensor("blk.0.ffn_up.weight", &[64, 32], 8, q8_0_block.repeat(64));
    file.tensor("blk.0.ffn_down.weight", &[32, 64], 3, q4_1_block.repeat(64));
    file
}

/// Seed of the fuzz target: a file that is refused at once would leave most of the converter untried. The target puts
/// zeros in place of the tensors' data.
#[test]
fn the_seed_for_fuzzing_is_a_whole_model_but_for_its_data() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/gguf/llama");
    let (llama, mut bytes) = (tiny_llama(), tiny_llama().bytes());
    let data: usize = llama.tensors.iter().map(|(.., data)| data.len().next_multiple_of(32)).sum();
    bytes.truncate(bytes.len() - data);
    if std::env::var_os("QLORA_UPDATE_SEEDS").is_some() {
        fs::write(&path, &bytes).unwrap();
    }
    let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(found == bytes, "{} differs: run this test with QLORA_UPDATE_SEEDS=1", path.display());
    bytes.resize(bytes.len() + data, 0);
    let dir = tempfile::tempdir().unwrap();
    write_model_dir(&Gguf::parse(&bytes).unwrap(), "someone/tiny", dir.path()).unwrap();
}

fn convert(file: &Writer) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file.bytes();
    write_model_dir(&Gguf::parse(&bytes)?, "someone/tiny", dir.path())?;
    Ok(dir)
}

fn error_of(file: &Writer) -> String {
    match convert(file) {
        Ok(_) => panic!("the conversion accepted a bad file"),
        Err(error) => error.to_string(),
    }
}

fn json(dir: &Path, name: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
}

#[test]
fn metadata_of_every_type_is_read() {
    let mut file = Writer::default();
    file.entry("i8", 1, vec![0xfe]);
    file.entry("u16", 2, 513u16.to_le_bytes().to_vec());
    file.entry("f64", 12, 0.25f64.to_le_bytes().to_vec());
    file.entry("u64", 10, u64::MAX.to_le_bytes().to_vec());
    file.entry("bool", 7, vec![1]);
    let inner = [4u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec(), 7u32.to_le_bytes().to_vec()].concat();
    file.array("nested", 9, &[inner]);
    let bytes = file.bytes();
    let metadata = Gguf::parse(&bytes).unwrap().metadata;
    assert_eq!(metadata["i8"], Value::Signed(-2));
    assert_eq!(metadata["u16"], Value::Unsigned(513));
    assert_eq!(metadata["f64"], Value::Float64(0.25));
    assert_eq!(metadata["u64"], Value::Unsigned(u64::MAX));
    assert_eq!(metadata["bool"], Value::Bool(true));
    assert_eq!(metadata["nested"], Value::Array(vec![Value::Array(vec![Value::Unsigned(7)])]));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = tiny_llama().bytes();
    Gguf::parse(&bytes).unwrap();
    // The padding behind the last tensor carries nothing, so the first 31 bytes less may still be whole.
    for length in 0..bytes.len() - 31 {
        assert!(Gguf::parse(&bytes[..length]).is_err(), "accepted the first {length} of {} bytes", bytes.len());
    }
}

#[test]
fn damaged_bytes_never_panic() {
    let bytes = tiny_llama().bytes();
    let dir = tempfile::tempdir().unwrap();
    let header = bytes.windows(9).position(|window| window == b"blk.0.ffn").unwrap() + 600;
    for position in 0..header {
        for value in [0x01, 0xff] {
            let mut damaged = bytes.clone();
            damaged[position] = value;
            if let Ok(gguf) = Gguf::parse(&damaged) {
                let _ = write_model_dir(&gguf, "someone/tiny", dir.path());
            }
        }
    }
}

#[test]
fn a_llama_becomes_a_hugging_face_directory() {
    let dir = convert(&tiny_llama()).unwrap();
    let config = json(dir.path(), "config.json");
    for (key, expected) in [
        ("_name_or_path", serde_json::json!("someone/tiny")),
        ("architectures", serde_json::json!(["LlamaForCausalLM"])),
        ("hidden_size", serde_json::json!(32)),
        ("num_key_value_heads", serde_json::json!(1)),
        ("head_dim", serde_json::json!(16)),
        ("rms_norm_eps", serde_json::json!(1e-5)),
        ("rope_theta", serde_json::json!(100_000.0)),
        ("tie_word_embeddings", serde_json::json!(true)),
        ("torch_dtype", serde_json::json!("bfloat16")),
        ("bos_token_id", serde_json::json!(1)),
        ("eos_token_id", serde_json::json!(0)),
    ] {
        assert_eq!(config[key], expected, "{key}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("chat_template.jinja")).unwrap(), "{{ messages }}");

    let weights = fs::read(dir.path().join("model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    assert_eq!(weights.len(), 11);
    let values = |name: &str, shape: &[usize]| -> Vec<f32> {
        let tensor = weights.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::BF16, shape), "{name}");
        tensor.data().chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
    };
    assert_eq!(values("model.embed_tokens.weight", &[6, 32]), pattern(6 * 32));
    assert_eq!(values("model.layers.0.self_attn.v_proj.weight", &[16, 32]), pattern(16 * 32));
    // Within a head of 16 rows, the even rows come first.
    let k: Vec<f32> = values("model.layers.0.self_attn.k_proj.weight", &[16, 32]);
    let stored = pattern(16 * 32);
    for row in 0..16 {
        let from = if row < 8 { 2 * row } else { 2 * (row - 8) + 1 };
        assert_eq!(k[row * 32..(row + 1) * 32], stored[from * 32..(from + 1) * 32], "row {row}");
    }
    // The block's bytes 0..16 are all low nibbles: values 0..15 · 1 + 2, then sixteen times 0 + 2.
    let row: Vec<f32> = (0..16).map(|q| q as f32 + 2.0).chain([2.0; 16]).collect();
    assert_eq!(values("model.layers.0.mlp.gate_proj.weight", &[64, 32]), row.repeat(64));
    let row: Vec<f32> = (0..32).map(|q| q as f32 * 2.0).collect();
    assert_eq!(values("model.layers.0.mlp.up_proj.weight", &[64, 32]), row.repeat(64));
}

#[test]
fn tokens_and_merges_become_a_tokenizer() {
    let dir = convert(&tiny_llama()).unwrap();
    let tokenizer = json(dir.path(), "tokenizer.json");
    assert_eq!(tokenizer["model"]["vocab"]["ab"], 4);
    assert_eq!(tokenizer["model"]["merges"], serde_json::json!(["a b"]));
    let added: Vec<_> = tokenizer["added_tokens"].as_array().unwrap().iter().map(|token| &token["content"]).collect();
    assert_eq!(added, ["<end>", "<start>", "<think>"]);
    assert_eq!(tokenizer["added_tokens"][0]["special"], true);
    assert_eq!(tokenizer["added_tokens"][2]["special"], false);
    let config = json(dir.path(), "tokenizer_config.json");
    assert_eq!(config["eos_token"], "<end>");
    assert_eq!(config["model_max_length"], 128);
}

#[test]
fn errors_name_the_key_or_the_tensor() {
    type Change = fn(&mut Writer);
    let cases: [(Change, &str); 12] = [
        (|file| file.string("general.architecture", "qwen2"), "general.architecture is \"qwen2\""),
        (|file| file.u32("llama.block_count", 2), "blk.1.attn_norm.weight is missing"),
        (|file| file.u32("llama.block_count", 0), "llama.block_count is 0"),
        (|file| file.string("llama.block_count", "one"), "llama.block_count is the string \"one\""),
        (|file| file.u32("llama.embedding_length", 64), "token_embd.weight has shape [6, 32] (expected [6, 64])"),
        (|file| file.tensor("rope_freqs.weight", &[8], 0, vec![0; 32]), "rope_freqs.weight\" has no place"),
        (|file| file.f32("llama.rope.freq_base", f32::NAN), "llama.rope.freq_base is NaN"),
        (|file| file.string("tokenizer.ggml.pre", "llama-bpe"), "tokenizer.ggml.pre is \"llama-bpe\""),
        (|file| file.array("tokenizer.ggml.merges", 8, &[text("a c")]), "the merge \"a c\""),
        (|file| file.u32("tokenizer.ggml.eos_token_id", 6), "tokenizer.ggml.eos_token_id is 6"),
        (|file| file.array("tokenizer.ggml.token_type", 5, &[]), "6 tokens, but 0 token types"),
        (|file| file.tensor("blk.0.attn_v.weight", &[16, 32], 2, vec![0; 288]), "ggml type 2 is not supported"),
    ];
    for (change, expected) in cases {
        let mut file = tiny_llama();
        change(&mut file);
        let error = error_of(&file);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn an_error_shows_the_beginning_of_a_long_text() {
    type Change = fn(&mut Writer, &str);
    let cases: [Change; 7] = [
        |file, long| file.string("general.architecture", long),
        |file, long| file.string("tokenizer.ggml.model", long),
        |file, long| file.string("tokenizer.ggml.pre", long),
        |file, long| file.string("tokenizer.ggml.add_bos_token", long),
        |file, long| file.array("tokenizer.ggml.merges", 8, &[text(long)]),
        |file, long| file.array("general.alignment", 8, &vec![text(long); 9]),
        |file, long| file.tensor(long, &[8], 0, vec![0; 32]),
    ];
    let long = "a\u{0}".repeat(20_000);
    for (number, change) in cases.into_iter().enumerate() {
        let mut file = tiny_llama();
        change(&mut file, &long);
        let error = error_of(&file);
        assert!(error.len() < 500, "{number}: {} bytes", error.len());
    }
}
