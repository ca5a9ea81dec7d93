//! Every way in which an NF4 checkpoint can be wrong is refused when it is opened, or, in its values, when it is read.

use std::collections::BTreeMap;
use std::path::Path;

use qlora_train::base::{Checkpoint, QuantizeOptions};
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::quantized::{options, write};
use super::refusals::{Raw, SINGLE, edit, refused, tensors_of};
use trainer_lab::assert_refused::assert_refused;

/// `[128, 64]`: 4096 bytes of codes, 128 blocks, 1 nested block.
const W: &str = "model.layers.0.mlp.up_proj.weight";
const STATE: &str = "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4";

type Tensors = BTreeMap<String, Raw>;

fn model(options: &QuantizeOptions) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), options);
    dir
}

#[track_caller]
fn refused_after(change: impl FnOnce(&mut Tensors), words: &[&str]) {
    let dir = model(&options(64, true));
    edit(dir.path().join(SINGLE), change);
    refused(&dir, words);
}

fn part(suffix: &str) -> String {
    format!("{W}{suffix}")
}

/// Replaces the bytes of the quant_state.
fn set_state(tensors: &mut Tensors, bytes: &[u8]) {
    tensors.insert(STATE.to_owned(), (Dtype::U8, vec![bytes.len()], bytes.to_vec()));
}

fn state(tensors: &Tensors) -> Map<String, Value> {
    serde_json::from_slice(&tensors[STATE].2).unwrap()
}

#[test]
fn a_part_that_is_missing_or_has_another_type_or_shape() {
    for suffix in [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"] {
        let words = [&part(suffix), "found nothing", "part of the NF4 weight", "get it again"];
        refused_after(|tensors| drop(tensors.remove(&part(suffix)).unwrap()), &words);
    }
    let floats = |n: usize| (Dtype::F32, vec![n], vec![0; 4 * n]);
    for (suffix, raw, found, expected) in [
        (".quant_map", floats(15), "F32 [15]", "F32 [16]"),
        (".quant_map", (Dtype::BF16, vec![16], vec![0; 32]), "BF16 [16]", "F32 [16]"),
        (".nested_quant_map", floats(255), "F32 [255]", "F32 [256]"),
        (".nested_absmax", floats(2), "F32 [2]", "F32 [1]"),
        (".absmax", floats(128), "F32 [128]", "U8 [128]"),
        (".absmax", (Dtype::U8, vec![127], vec![0; 127]), "U8 [127]", "U8 [128]"),
        ("", (Dtype::U8, vec![4095, 1], vec![0; 4095]), "U8 [4095, 1]", "[n, 1] of 4096 bytes"),
        ("", (Dtype::U8, vec![4096], vec![0; 4096]), "U8 [4096]", "[n, 1] of 4096 bytes"),
        ("", (Dtype::BF16, vec![4096, 1], vec![0; 8192]), "BF16 [4096, 1]", "[n, 1] of 4096 bytes"),
        (".quant_state.bitsandbytes__nf4", floats(4), "F32 [4]", "U8 [n]"),
        (".quant_state.bitsandbytes__nf4", (Dtype::U8, vec![2, 2], vec![0; 4]), "U8 [2, 2]", "U8 [n]"),
        (".quant_state.bitsandbytes__nf4", (Dtype::U8, vec![70_000], vec![b' '; 70_000]), "[70000]", "at most 65536"),
    ] {
        let change = |tensors: &mut Tensors| drop(tensors.insert(part(suffix), raw));
        refused_after(change, &[SINGLE, &part(suffix), found, expected]);
    }
}

#[test]
fn a_quant_state_that_is_no_json_of_bitsandbytes() {
    for bytes in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"{\"blocksize\": NaN}"] {
        refused_after(|tensors| set_state(tensors, bytes), &[SINGLE, STATE, "not a quant_state", "get it again"]);
    }
    let twice = br#"{"quant_type":"nf4","blocksize":64,"blocksize":64}"#;
    refused_after(|tensors| set_state(tensors, twice), &[STATE, "`blocksize` appears twice"]);
}

#[test]
fn a_quant_state_of_another_kind_or_weight() {
    for (key, value, words) in [
        ("quant_type", json!("fp4"), &["\"fp4\"", "expected \"nf4\""][..]),
        ("quant_type", Value::Null, &["found null"]),
        ("blocksize", json!(48), &["found 48", "power of two from 32 to 4096"]),
        ("blocksize", json!(0), &["found 0", "power of two"]),
        ("blocksize", json!("64"), &["found \"64\"", "a whole number"]),
        ("blocksize", json!(8192), &["found 8192", "power of two"]),
        ("shape", json!([64, 128]), &["found [64, 128]", "expected [128, 64] as config.json says"]),
        ("shape", json!([8192]), &["found [8192]", "[out features, in features]"]),
        ("shape", json!([-1, 64]), &["found [-1,64]", "[out features, in features]"]),
        ("shape", Value::Null, &["found null"]),
        ("dtype", json!("int8"), &["found \"int8\"", "bfloat16"]),
        ("nested_blocksize", json!(512), &["found 512", "256"]),
        ("nested_dtype", json!("bfloat16"), &["found \"bfloat16\"", "\"float32\""]),
        ("nested_offset", json!(1e300), &["found 1e+300", "that f32 can hold"]),
        ("nested_offset", Value::Null, &["found null", "that f32 can hold"]),
        ("surprise", json!(1), &["found 1", "only the keys"]),
    ] {
        let change = |tensors: &mut Tensors| {
            let mut map = state(tensors);
            map.insert(key.to_owned(), value);
            set_state(tensors, Value::Object(map).to_string().as_bytes());
        };
        refused_after(change, &[&[SINGLE, STATE, &format!("key `{key}`")], words].concat());
    }
    // Another block size, and no double quantization: the other parts tell.
    let with = |change: fn(&mut Map<String, Value>)| {
        move |tensors: &mut Tensors| {
            let mut map = state(tensors);
            change(&mut map);
            set_state(tensors, Value::Object(map).to_string().as_bytes());
        }
    };
    let block = with(|map| drop(map.insert("blocksize".to_owned(), json!(128))));
    refused_after(block, &["absmax", "found U8 [128]", "expected U8 [64]", "different checkpoints"]);
    let plain = with(|map| map.retain(|key, _| !key.starts_with("nested_")));
    refused_after(plain, &["absmax", "found U8 [128]", "expected F32 [128]"]);
    // Consistent without double quantization, but nested parts remain.
    let remains = |tensors: &mut Tensors| {
        plain(tensors);
        tensors.insert(part(".absmax"), (Dtype::F32, vec![128], vec![0; 512]));
    };
    refused_after(remains, &["nested_absmax", "does not have", "`nested_offset`"]);
}

#[test]
fn parts_of_other_kinds_of_quantization() {
    let add = |name: String| move |tensors: &mut Tensors| drop(tensors.insert(name, (Dtype::F32, vec![1], vec![0; 4])));
    refused_after(add(part(".SCB")), &["up_proj.weight.SCB", "does not have", "different checkpoints"]);
    refused_after(add(part(".quant_state.bitsandbytes__fp4")), &["bitsandbytes__fp4", "FP4", "expected NF4"]);
    let embedding = "model.embed_tokens.weight.absmax";
    refused_after(add(embedding.to_owned()), &[embedding, "part of a quantized weight", "linear layers only"]);
}

#[test]
fn mixtures_of_checkpoints() {
    let of = |other: &TempDir| {
        let other = tensors_of(&other.path().join(SINGLE));
        move |tensors: &mut Tensors| {
            tensors.retain(|name, _| !name.starts_with(W));
            tensors.extend(other.into_iter().filter(|(name, _)| name.starts_with(W)));
        }
    };
    // up_proj comes after q_proj, which sets the example.
    let mixture = "mixture of two, get it again";
    refused_after(of(&model(&options(128, true))), &[W, "block size 128", "expected 64", mixture]);
    refused_after(of(&model(&options(64, false))), &[W, "without double", "expected 64 with", mixture]);
    let skipped = QuantizeOptions { skip_modules: vec!["up_proj".to_owned()], ..options(64, true) };
    refused_after(
        of(&model(&skipped)),
        &[W, "found BF16 [128, 64] without a quant_state", "`model.layers.0.mlp.up_proj` in `llm_int8_skip_modules`"],
    );
}

#[test]
fn shards_of_two_quantizations() {
    let sharded = |block| model(&QuantizeOptions { max_shard_bytes: 40_000, ..options(block, true) });
    let (dir, other) = (sharded(64), sharded(128));
    let shards: Vec<_> = super::contents(dir.path()).into_keys().filter(|name| name.contains("-of-")).collect();
    assert!(shards.len() > 1, "{shards:?}");
    assert!(Checkpoint::open(dir.path()).is_ok());
    // Tensors of another run under equal names, in equal places.
    std::fs::copy(other.path().join(&shards[0]), dir.path().join(&shards[0])).unwrap();
    let words =
        ["metadata `qlora.base_fingerprint`", "-of-", "files belong to different checkpoints", "get them again"];
    refused(&dir, &words);
}

fn edit_config(dir: &Path, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = dir.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, Value::Object(config).to_string()).unwrap();
}

#[test]
fn configs_of_other_quantizations() {
    let dir = model(&options(64, true));
    let whole = std::fs::read(dir.path().join("config.json")).unwrap();
    for (key, value, words) in [
        ("quant_method", json!("gptq"), &["\"gptq\"", "\"bitsandbytes\"", "original 16-bit model"][..]),
        ("quant_method", json!("awq"), &["\"awq\""]),
        ("quant_method", json!("fp8"), &["\"fp8\""]),
        ("quant_method", json!("compressed-tensors"), &["\"compressed-tensors\""]),
        ("quant_method", json!(4), &["found 4", "a string"]),
        ("load_in_8bit", json!(true), &["found true", "int8"]),
        ("load_in_4bit", json!(false), &["found false", "only NF4"]),
        ("load_in_4bit", json!("yes"), &["found \"yes\"", "true or false"]),
        ("bnb_4bit_quant_type", json!("fp4"), &["\"fp4\"", "expected \"nf4\""]),
        ("bnb_4bit_quant_type", Value::Null, &["found null", "it means \"fp4\""]),
        ("bnb_4bit_use_double_quant", json!(1), &["found 1", "true or false"]),
        ("bnb_4bit_quant_storage", json!("int4"), &["\"int4\"", "uint8"]),
        ("bnb_4bit_compute_dtype", json!("float8"), &["\"float8\"", "bfloat16"]),
        ("llm_int8_skip_modules", json!("lm_head"), &["found \"lm_head\"", "a list"]),
        ("llm_int8_skip_modules", json!([1]), &["found [1]", "a list"]),
        ("llm_int8_skip_modules", json!(["("]), &["found \"(\"", "a module's name"]),
    ] {
        edit_config(dir.path(), |config| config["quantization_config"][key] = value);
        refused(&dir, &[&["config.json", "`quantization_config`", &format!("key `{key}`")], words].concat());
        std::fs::write(dir.path().join("config.json"), &whole).unwrap();
    }
    edit_config(dir.path(), |config| config["quantization_config"] = json!("nf4"));
    refused(&dir, &["config.json", "key `quantization_config`", "found \"nf4\"", "an object"]);
    edit_config(dir.path(), |config| drop(config.remove("quantization_config")));
    refused(&dir, &[SINGLE, "parts of a quantized weight", "no `quantization_config`", "get config.json"]);
}

#[test]
fn scales_and_maps_that_are_not_finite_are_refused_when_they_are_read() {
    let nan = f32::NAN.to_le_bytes();
    for (double_quant, suffix, word) in [
        (true, ".quant_map", "quant_map[0]"),
        (true, ".nested_absmax", "nested_absmax[0]"),
        (true, ".nested_quant_map", "nested_quant_map[0]"),
        (false, ".absmax", "absmax[0]"),
    ] {
        let dir = model(&options(64, double_quant));
        edit(dir.path().join(SINGLE), |tensors| tensors.get_mut(&part(suffix)).unwrap().2[..4].copy_from_slice(&nan));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let words = [SINGLE, W, word, "NaN", "damaged, get it again"];
        assert_refused(checkpoint.read_weight(W), &words);
        assert_refused(checkpoint.read_weight_with_digest(W), &words);
        assert_refused(checkpoint.read_f32(W), &words);
    }
}
