//! `export gguf`: the files that it writes, read back, and what it refuses.

use half::bf16;
use qlora_train::adapter::Adapter;
use qlora_train::arch::Arch;
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::gguf::{GgmlType, Gguf, Value, interleaved_row};
use qlora_train::lora::ParamId;
use serde_json::json;
use std::path::Path;
use trainer_lab::fixture;

use crate::sandbox::Sandbox;

const EXPORT: &str = "export gguf --json --model model --adapter out";

fn trained() -> Sandbox {
    let sandbox = Sandbox::chat();
    sandbox.train_into("out", "--learning-rate 0.02").ok();
    sandbox
}

/// The file of an export into `out`, by its name.
fn file(sandbox: &Sandbox, line: &str) -> Vec<u8> {
    let answer = sandbox.run(line).json();
    let bytes = std::fs::read(sandbox.path(answer["file"].as_str().unwrap())).unwrap();
    assert_eq!(answer["bytes"], bytes.len());
    bytes
}

/// The rows of `values` in the order in which llama.cpp has those of q and k.
fn interleaved(values: &[f32], columns: usize, head_dim: usize) -> Vec<f32> {
    let rows = (0..values.len() / columns).map(|row| interleaved_row(row, head_dim) * columns);
    rows.flat_map(|at| values[at..at + columns].to_vec()).collect()
}

#[test]
fn a_merged_model_is_the_one_that_merge_writes() {
    let sandbox = trained();
    sandbox.run("merge --model model --adapter out --output merged").ok();
    let merged = Checkpoint::open(&sandbox.path("merged")).unwrap();
    let bytes = file(&sandbox, &format!("{EXPORT} --output g"));
    assert_eq!(sandbox.names("g"), ["Modelfile", "model-BF16.gguf"]);
    let gguf = Gguf::parse(&bytes).unwrap();
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers.", "blk."),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    assert_eq!(gguf.tensors.len(), merged.names().count());
    for name in merged.names() {
        let own = names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
        let tensor = gguf.tensors.get(&own).unwrap_or_else(|| panic!("{own} is missing"));
        let shape = merged.shape(name).unwrap();
        assert_eq!(tensor.shape, shape, "{name}");
        assert_eq!(tensor.kind, if shape.len() == 1 { GgmlType::F32 } else { GgmlType::Bf16 }, "{name}");
        let mut expected = merged.read_f32(name).unwrap();
        if name.contains("q_proj") || name.contains("k_proj") {
            expected = interleaved(&expected, shape[1], tiny_arch().head_dim);
        }
        assert_eq!(tensor.kind.to_f32(tensor.data), expected, "{name}");
    }
    // Rows of 64 and 128 values are no whole blocks of 256.
    let four = file(&sandbox, &format!("{EXPORT} --output q --type q4_k_m"));
    let four = Gguf::parse(&four).unwrap();
    for (name, kind) in [
        ("blk.0.attn_q", GgmlType::Q5_0),
        ("blk.0.attn_v", GgmlType::Q5_0),
        ("blk.1.attn_v", GgmlType::Q8_0),
        ("blk.1.ffn_down", GgmlType::Q8_0),
        ("token_embd", GgmlType::Q5_0),
        ("output", GgmlType::Q8_0),
        ("blk.1.ffn_norm", GgmlType::F32),
    ] {
        assert_eq!(four.tensors[&format!("{name}.weight")].kind, kind, "{name}");
    }
    // f32 is not rounded, and Q8_0 is a quarter of it.
    let exact = file(&sandbox, &format!("{EXPORT} --output f --type f32"));
    let exact = Gguf::parse(&exact).unwrap();
    let (exact, rounded) = (&exact.tensors["blk.0.ffn_up.weight"], &gguf.tensors["blk.0.ffn_up.weight"]);
    let values = exact.kind.to_f32(exact.data);
    let once: Vec<f32> = values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    assert_eq!(rounded.kind.to_f32(rounded.data), once);
    assert_ne!(values, once);
    let eight = file(&sandbox, &format!("{EXPORT} --output e --type q8_0"));
    let eight = Gguf::parse(&eight).unwrap();
    let eight = &eight.tensors["blk.0.ffn_up.weight"];
    assert_eq!(eight.kind, GgmlType::Q8_0);
    let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (a, b) in eight.kind.to_f32(eight.data).iter().zip(&values) {
        // Half a step, and the rounding of its scale to f16.
        assert!((a - b).abs() <= largest / 127.0 * 0.5 + largest * 2f32.powi(-11), "{a} {b}");
    }
}

#[test]
fn sizes_tokens_and_the_template_are_in_the_metadata() {
    let sandbox = trained();
    let bytes = file(&sandbox, &format!("{EXPORT} --output g"));
    let gguf = Gguf::parse(&bytes).unwrap();
    let arch = tiny_arch();
    for (key, expected) in [
        ("llama.block_count", arch.num_layers),
        ("llama.embedding_length", arch.hidden_size),
        ("llama.feed_forward_length", arch.intermediate_size),
        ("llama.attention.head_count", arch.num_heads),
        ("llama.attention.head_count_kv", arch.num_kv_heads),
        ("llama.attention.key_length", arch.head_dim),
        ("llama.rope.dimension_count", arch.head_dim),
        ("llama.context_length", arch.max_position_embeddings),
        ("llama.vocab_size", fixture::VOCAB_SIZE),
        ("general.file_type", 32),
        ("tokenizer.ggml.bos_token_id", 259),
        ("tokenizer.ggml.eos_token_id", 260),
        ("tokenizer.ggml.eot_token_id", 262),
        ("tokenizer.ggml.padding_token_id", 260),
    ] {
        assert_eq!(gguf.integer(key).unwrap(), expected as u64, "{key}");
    }
    for (key, expected) in [
        ("general.architecture", "llama"),
        ("general.type", "model"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
        ("tokenizer.chat_template", fixture::CHATML),
    ] {
        assert_eq!(gguf.string(key).unwrap(), expected, "{key}");
    }
    assert_eq!(gguf.metadata["tokenizer.ggml.add_bos_token"], Value::Bool(true));
    let (tokens, kinds) =
        (gguf.strings("tokenizer.ggml.tokens").unwrap(), gguf.integers("tokenizer.ggml.token_type").unwrap());
    assert_eq!((tokens.len(), kinds.len()), (fixture::VOCAB_SIZE, fixture::VOCAB_SIZE));
    assert_eq!((tokens[257], kinds[257], tokens[262], kinds[262]), ("hel", 1, "<|im_end|>", 3));
    assert_eq!(gguf.strings("tokenizer.ggml.merges").unwrap(), ["h e", "he l", "Ġ w"]);
    let modelfile = sandbox.read("g/Modelfile");
    let template = "TEMPLATE \"\"\"{{ range .Messages }}{{ if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}";
    for part in ["FROM ./model-BF16.gguf\n", template, "PARAMETER stop \"<|im_end|>\"\n", "PARAMETER stop \"<eos>\"\n"]
    {
        assert!(modelfile.contains(part), "{modelfile} lacks {part}");
    }
}

#[test]
fn an_adapter_alone_computes_what_it_did() {
    let sandbox = trained();
    let bytes = file(&sandbox, &format!("{EXPORT} --output g --lora"));
    assert_eq!(sandbox.names("g"), ["Modelfile", "model-lora-F32.gguf"]);
    assert!(sandbox.read("g/Modelfile").starts_with("FROM ./model-BF16.gguf\nADAPTER ./model-lora-F32.gguf\n"));
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!((gguf.string("general.type").unwrap(), gguf.string("adapter.type").unwrap()), ("adapter", "lora"));
    let mut adapter = Adapter::load(&sandbox.path("out")).unwrap();
    let alpha = gguf.number("adapter.lora.alpha").unwrap();
    assert_eq!(gguf.tensors.len(), adapter.tensors.len());
    let check = |gguf: &Gguf, adapter: &Adapter, alpha: f64| {
        for (module, part) in [("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")] {
            let pair = adapter.lora_pairs().unwrap()[&format!("model.layers.1.{module}")];
            let [a, b] = ["a", "b"].map(|end| &gguf.tensors[&format!("blk.1.{part}.weight.lora_{end}")]);
            assert_eq!((&a.shape, &b.shape), (&vec![pair.r, pair.k_in], &vec![pair.n_out, pair.r]));
            assert_eq!(a.kind.to_f32(a.data), pair.a);
            let rows =
                if part == "attn_q" { interleaved(pair.b, pair.r, tiny_arch().head_dim) } else { pair.b.to_vec() };
            for (found, expected) in b.kind.to_f32(b.data).iter().zip(&rows) {
                let (found, expected) = (f64::from(*found) * alpha / pair.r as f64, expected * pair.scale);
                assert!((found - f64::from(expected)).abs() <= 1e-6 * f64::from(expected.abs()), "{found} {expected}");
            }
        }
    };
    check(&gguf, &adapter, alpha);
    // Scales that differ between modules are in B.
    adapter.config.alpha_pattern.insert("q_proj".to_owned(), 3.0);
    adapter.save(&sandbox.path("pattern")).unwrap();
    let adapter = Adapter::load(&sandbox.path("pattern")).unwrap();
    let bytes = file(&sandbox, "export gguf --json --model model --adapter pattern --output p --lora");
    let gguf = Gguf::parse(&bytes).unwrap();
    check(&gguf, &adapter, gguf.number("adapter.lora.alpha").unwrap());
    let halved = file(&sandbox, &format!("{EXPORT} --output h --lora --type f16"));
    assert_eq!(Gguf::parse(&halved).unwrap().tensors["blk.0.attn_k.weight.lora_b"].kind, GgmlType::F16);
}

#[test]
fn the_base_alone_is_written_dequantized_where_it_is_in_nf4() {
    let sandbox = trained();
    sandbox.run("quantize --model model --output nf4").ok();
    let base = Checkpoint::open(&sandbox.path("nf4")).unwrap();
    let bytes = file(&sandbox, "export gguf --json --model nf4 --output g --type f32");
    let gguf = Gguf::parse(&bytes).unwrap();
    let tensor = &gguf.tensors["blk.1.ffn_gate.weight"];
    assert_eq!(tensor.kind.to_f32(tensor.data), base.read_f32("model.layers.1.mlp.gate_proj.weight").unwrap());
}

/// A tiny model by the config.json of a family's golden files, `changed`.
fn of_family(family: &str, changed: fn(&mut Arch)) -> Sandbox {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(family);
    let mut arch = Arch::from_file(&golden.join("config.json")).unwrap();
    changed(&mut arch);
    Sandbox::chat_of(arch)
}

/// Differences from Llama in llama.cpp: names, windows, rotations by kind of layer, factors as tensors, and norms that
/// multiply by 1 + w.
#[test]
fn families_are_written_as_llama_cpp_has_them() {
    let export = "export gguf --json --model model --output g --type f32";
    let written = |family: &str, changed: fn(&mut Arch)| {
        let sandbox = of_family(family, changed);
        let bytes = file(&sandbox, export);
        (sandbox, bytes)
    };
    let (sandbox, bytes) = written("gemma3", |arch| arch.multipliers.attention = None);
    let gguf = Gguf::parse(&bytes).unwrap();
    let model = Checkpoint::open(&sandbox.path("model")).unwrap();
    for (name, own) in [
        ("blk.1.post_attention_norm", "model.layers.1.post_attention_layernorm"),
        ("blk.1.ffn_norm", "model.layers.1.pre_feedforward_layernorm"),
        ("blk.0.post_ffw_norm", "model.layers.0.post_feedforward_layernorm"),
        ("blk.0.attn_q_norm", "model.layers.0.self_attn.q_norm"),
        ("output_norm", "model.norm"),
    ] {
        let tensor = &gguf.tensors[&format!("{name}.weight")];
        let shifted: Vec<f32> = model.read_f32(&format!("{own}.weight")).unwrap().iter().map(|w| w + 1.0).collect();
        assert_eq!(tensor.kind.to_f32(tensor.data), shifted, "{name}");
    }
    assert_eq!(gguf.metadata["general.architecture"], Value::String("gemma3".to_owned()));
    assert_eq!(gguf.integer("gemma3.attention.sliding_window").unwrap(), 6);
    let pattern = Value::Array([true, false].map(Value::Bool).to_vec());
    assert_eq!(gguf.metadata["gemma3.attention.sliding_window_pattern"], pattern);
    assert_eq!(gguf.number("gemma3.rope.freq_base_swa").unwrap(), 500.0);
    assert_eq!(gguf.number("gemma3.rope.freq_base").unwrap(), 10_000.0);
    assert_eq!(gguf.number("gemma3.rope.scaling.factor").unwrap(), 2.0);

    let own_scale = |arch: &mut Arch| arch.multipliers.attention = None;
    let (_sandbox, bytes) = written("gemma2", own_scale);
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.metadata["general.architecture"], Value::String("gemma2".to_owned()));
    assert_eq!(gguf.number("gemma2.attn_logit_softcapping").unwrap() as f32, 0.6);
    assert_eq!(gguf.number("gemma2.final_logit_softcapping").unwrap() as f32, 1.5);
    assert_eq!(gguf.integer("gemma2.attention.sliding_window").unwrap(), 6);
    assert!(!gguf.metadata.contains_key("gemma2.attention.sliding_window_pattern"));
    assert!(
        gguf.tensors.contains_key("blk.0.post_ffw_norm.weight")
            && !gguf.tensors.contains_key("blk.0.attn_q_norm.weight")
    );

    // One tensor of Granite 4 is two of llama.cpp's.
    let (sandbox, bytes) = written("granitemoehybrid", |_| ());
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.metadata["general.architecture"], Value::String("granite".to_owned()));
    let whole = Checkpoint::open(&sandbox.path("model")).unwrap();
    let whole = whole.read_f32("model.layers.1.shared_mlp.input_linear.weight").unwrap();
    let half = |name: &str| gguf.tensors[name].kind.to_f32(gguf.tensors[name].data);
    assert_eq!([half("blk.1.ffn_gate.weight"), half("blk.1.ffn_up.weight")].concat(), whole);

    let same_theta = |arch: &mut Arch| {
        let theta = arch.layer(1).rope.as_ref().unwrap().theta;
        arch.layers[0].rope.as_mut().unwrap().theta = theta;
        arch.tie_word_embeddings = false;
    };
    let (_sandbox, bytes) = written("olmo3", same_theta);
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.metadata["olmo2.attention.sliding_window_pattern"], pattern);
    assert!(
        gguf.tensors.contains_key("blk.0.post_ffw_norm.weight") && !gguf.tensors.contains_key("blk.0.attn_norm.weight")
    );
    let (_sandbox, bytes) = written("phi3", |_| ());
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.tensors["blk.0.attn_qkv.weight"].shape, [64, 32]);
    assert_eq!(gguf.tensors["blk.0.ffn_up.weight"].shape, [112, 32]);
    assert_eq!(gguf.integer("phi3.rope.dimension_count").unwrap(), 6);
    assert_eq!(gguf.integer("phi3.attention.sliding_window").unwrap(), 0);
    let (_sandbox, bytes) = written("phi3-long", |_| ());
    let gguf = Gguf::parse(&bytes).unwrap();
    let factors = |name: &str| gguf.tensors[name].kind.to_f32(gguf.tensors[name].data);
    assert_eq!(factors("rope_factors_long.weight"), [1.2, 2.0, 3.5, 7.0]);
    assert_eq!(factors("rope_factors_short.weight"), [1.0, 1.1, 1.3, 1.5]);
    assert_eq!(gguf.integer("phi3.rope.scaling.original_context_length").unwrap(), 8);
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused_by_name() {
    type Change = fn(&mut Arch);
    let cases: [(&str, Change, &str); 9] = [
        ("gemma2", |_| (), "query_pre_attn_scalar"),
        ("gemma2", |arch| arch.tie_word_embeddings = false, "an output layer that is not the embedding"),
        ("gemma2", |arch| (arch.multipliers.attention, arch.logits_soft_cap) = (None, None), "soft caps"),
        ("gemma2", |arch| (arch.multipliers.attention = None, arch.layers.swap(0, 1)).1, "layers that have a window"),
        ("gemma3", |_| (), "query_pre_attn_scalar"),
        ("olmo2", |_| (), "an output layer that is the embedding"),
        ("olmo3", |arch| arch.tie_word_embeddings = false, "kinds of rotary positions"),
        ("phi3", |arch| arch.head_dim = 16, "of another width than the model"),
        ("qwen2", |arch| arch.head_dim = 16, "of another width than the model"),
    ];
    for (family, changed, words) in cases {
        of_family(family, changed).refused("export gguf --model model --output x", &[words, "llama.cpp", "merge"]);
    }
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let sandbox = trained();
    let other = Arch { vocab_size: fixture::VOCAB_SIZE, ..tiny_arch() };
    qlora_train::base::synthetic::Synthetic::new(other.clone(), 2).write(&sandbox.path("other")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(sandbox.path(&format!("model/{name}")), sandbox.path(&format!("other/{name}"))).unwrap();
    }
    let other_base = "export gguf --model other --adapter out --output new";
    sandbox.refused(other_base, &["fingerprint", "--allow-other-base"]);
    sandbox.run(&format!("{other_base} --allow-other-base")).ok();
    sandbox.refused(&format!("{EXPORT} --output out"), &["out", "not empty"]);
    sandbox.refused("export gguf --model model --adapter none --output x", &["none", "adapter_config.json"]);
    sandbox.refused("export gguf --output x", &["--model"]);
    for (line, word) in [("--model model --lora", "--adapter"), ("--adapter out --type q2_k", "q8_0")] {
        let done = sandbox.run(&format!("export gguf --output x {line}"));
        assert!(done.status == Some(2) && done.stderr.contains(word) && !sandbox.path("x").exists(), "{done:#?}");
    }
    sandbox.refused(&format!("{EXPORT} --output x --lora --type q4_k_m"), &["--type q4_k_m", "f16"]);
    let unlike = of_family("smollm3", |_| ());
    unlike.refused("export gguf --model model --output x", &["smollm3", "not rotated", "merge"]);
    let few = Sandbox::new();
    few.refused("export gguf --model model --output x", &["tokenizer.json", "not found"]);
    let wrong = |change: &dyn Fn(&mut serde_json::Value), words: &[&str]| {
        let mut tokenizer = fixture::tokenizer_json();
        change(&mut tokenizer);
        fixture::write_json(&sandbox.path("model"), "tokenizer.json", &tokenizer);
        sandbox.refused(&format!("{EXPORT} --output x"), words);
    };
    wrong(
        &|json| json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": []}),
        &["tokenizer.json", "pre_tokenizer"],
    );
    wrong(
        &|json| json["model"] = json!({"type": "WordLevel", "vocab": json["model"]["vocab"].clone(), "unk_token": "a"}),
        &["WordLevel", "expected BPE"],
    );
    fixture::write_json(&sandbox.path("model"), "tokenizer.json", &fixture::tokenizer_json());
    // Two bytes of the weights, as a number that f16 has not: 2^17.
    let (path, large) = (sandbox.path("model/model.safetensors"), bf16::from_f32(131_072.0).to_le_bytes());
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&large);
    std::fs::write(&path, &bytes).unwrap();
    sandbox.refused("export gguf --model model --output x --type f16", &["131072", "F16", "--type bf16"]);
    sandbox.run("export gguf --model model --output x --type bf16").ok();
    let mut adapter = Adapter::load(&sandbox.path("out")).unwrap();
    let key = ParamId::a("model.layers.0.self_attn.q_proj").peft_key();
    let shape = adapter.tensors[&key].0.clone();
    let mut file = sandbox.bytes("out/adapter_model.safetensors");
    let end = file.len();
    file[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(sandbox.path("out/adapter_model.safetensors"), file).unwrap();
    std::fs::remove_file(sandbox.path("out/SHA256SUMS")).unwrap();
    sandbox.refused(&format!("{EXPORT} --output y"), &["NaN", "finite"]);
    adapter.tensors.insert(key, (vec![shape[0], 2 * shape[1]], vec![0.0; 2 * shape[0] * shape[1]]));
    adapter.save(&sandbox.path("wide")).unwrap();
    sandbox.refused("export gguf --model model --adapter wide --output y --lora", &["q_proj", "expected 64 x 64"]);
}

#[test]
fn a_full_disk_or_a_kill_leaves_nothing_that_looks_whole() {
    let sandbox = trained();
    let before = sandbox.files();
    for (place, more) in
        [("write/model-BF16.gguf", ""), ("write/model-lora-F32.gguf", "--lora"), ("write/Modelfile", "")]
    {
        let done = sandbox.run_at_fault(&format!("{EXPORT} --output g {more}"), &format!("{place}:1:full"));
        done.ended(1, &["g/", "cannot be written", "No space left"]);
        assert!(sandbox.files() == before, "{place}");
    }
    let killed = sandbox.run_at_fault(&format!("{EXPORT} --output g"), "tensor:5");
    assert_eq!(killed.status, None);
    assert!(!sandbox.path("g").exists() && sandbox.files() != before);
    file(&sandbox, &format!("{EXPORT} --output g"));
    let left: Vec<_> = sandbox.files().into_keys().filter(|path| !before.contains_key(path)).collect();
    let made = ["g", "g/Modelfile", "g/model-BF16.gguf"].map(|name| sandbox.path(name));
    assert!(left.iter().all(|path| made.contains(path)) && left.len() == made.len(), "{left:?}");
}
