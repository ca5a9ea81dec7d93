//! Every way in which a directory can be wrong is found when it is opened, and nothing in it is touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use qlora_kernels::nf4::Nf4Options;
use qlora_train::arch::Arch;
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::base::{Checkpoint, QuantizeOptions, quantize};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::contents;
use trainer_lab::assert_refused::assert_refused;

pub(super) const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NORM: &str = "model.norm.weight";

/// A tensor as a test writes it.
pub(super) type Raw = (Dtype, Vec<usize>, Vec<u8>);

/// A change of a file's tensors.
type Edit = dyn Fn(&mut BTreeMap<String, Raw>);
/// A change and the words of the refusal that it must lead to.
type Case<'a, F> = (&'a F, &'a [&'a str]);

fn model(shards: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    Synthetic { shards, ..Synthetic::new(tiny_arch(), 1) }.write(dir.path()).unwrap();
    dir
}

pub(super) fn refused(dir: &TempDir, words: &[&str]) {
    let before = contents(dir.path());
    assert_refused(Checkpoint::open(dir.path()), words);
    assert!(contents(dir.path()) == before, "something was written");
}

fn shard(i: usize, of: usize) -> String {
    format!("model-{i:05}-of-{of:05}.safetensors")
}

pub(super) fn tensors_of(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let raw = |view: TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, raw(view))).collect()
}

/// Rewrites the tensors of one file, with the library's own writer.
pub(super) fn edit(path: PathBuf, change: impl FnOnce(&mut BTreeMap<String, Raw>)) {
    let mut tensors = tensors_of(&path);
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Rewrites the header as text, the data as it is.
fn edit_header(dir: &TempDir, change: impl FnOnce(String) -> String) {
    let path = dir.path().join(SINGLE);
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(bytes[8..8 + length].to_vec()).unwrap());
    let head = (header.len() as u64).to_le_bytes();
    fs::write(path, [&head[..], header.as_bytes(), &bytes[8 + length..]].concat()).unwrap();
}

fn edit_index(dir: &TempDir, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = dir.path().join(INDEX);
    let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(index["weight_map"].as_object_mut().unwrap());
    fs::write(path, index.to_string()).unwrap();
}

#[test]
fn directories_that_are_no_checkpoint() {
    assert_refused(Checkpoint::open(Path::new("/nonexistent/model")), &["/nonexistent/model", "no such directory"]);
    let dir = tempfile::tempdir().unwrap();
    refused(&dir, &["config.json", "no such file"]);
    let config = Value::Object(tiny_arch().to_json("bfloat16")).to_string();
    fs::write(dir.path().join("config.json"), config).unwrap();
    refused(&dir, &["no weights", SINGLE, INDEX]);
    fs::write(dir.path().join(shard(1, 2)), "").unwrap();
    refused(&dir, &["without", INDEX]);
    fs::remove_file(dir.path().join(shard(1, 2))).unwrap();
    for other in ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.gguf"] {
        fs::write(dir.path().join(other), "x").unwrap();
        refused(&dir, &[other, "convert the weights to safetensors"]);
        fs::remove_file(dir.path().join(other)).unwrap();
    }
    fs::create_dir(dir.path().join(SINGLE)).unwrap();
    refused(&dir, &[SINGLE, "not a regular file"]);
    fs::remove_dir(dir.path().join(SINGLE)).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join(SINGLE)).unwrap();
    refused(&dir, &[SINGLE, "cannot be read"]);
}

#[test]
fn truncated_and_damaged_files() {
    let whole = fs::read(model(1).path().join(SINGLE)).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let huge = [&100_000_001u64.to_le_bytes()[..], &whole[8..]].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (whole[..whole.len() - 1].to_vec(), "truncated"),
        (whole[..8 + header].to_vec(), "truncated"),
        (whole[..8 + header - 1].to_vec(), "truncated"),
        (whole[..5].to_vec(), "5 bytes"),
        (vec![], "0 bytes"),
        ([&whole[..], b"x"].concat(), "damaged"),
        (huge, "header length of 100000001"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n".to_vec(), "git lfs pull"),
        ([&4u64.to_le_bytes()[..], b"null"].concat(), "header is not valid"),
        ([&2u64.to_le_bytes()[..], b"{}"].concat(), "found nothing"),
    ];
    let dir = model(1);
    for (bytes, word) in cases {
        fs::write(dir.path().join(SINGLE), bytes).unwrap();
        refused(&dir, &[SINGLE.split('.').next().unwrap(), word]);
    }
}

#[test]
fn headers_that_lie() {
    let cases: [Case<dyn Fn(String) -> String>; 5] = [
        (&|h| h.replacen("\"BF16\"", "\"BF15\"", 1), &["embed_tokens", "BF15"]),
        (&|h| h.replacen("[96,64]", "[96,65]", 1), &["embed_tokens", "[96, 65]", "data_offsets"]),
        (&|h| h.replacen("[96,64]", "[18446744073709551615,64]", 1), &["embed_tokens", "data_offsets"]),
        (&|h| h.replace("model.norm.weight", "lm_head.weight"), &["`lm_head.weight` appears twice"]),
        (&|h| h.replacen("[0,12288]", "[12288,0]", 1), &["embed_tokens", "data_offsets"]),
    ];
    for (change, words) in cases {
        let dir = model(1);
        edit_header(&dir, change);
        refused(&dir, &[&[SINGLE], words].concat());
    }
    // A hole and an overlap between two tensors of equal size.
    let layer = |i: usize| format!("model.layers.{i}.input_layernorm.weight");
    let dir = model(1);
    edit_header(&dir, |header| {
        let mut value: Value = serde_json::from_str(&header).unwrap();
        value[layer(1)]["data_offsets"] = value[layer(0)]["data_offsets"].clone();
        value.to_string()
    });
    refused(&dir, &[SINGLE, &layer(1), "hole or an overlap"]);
}

#[test]
fn tensors_missing_unknown_or_of_another_shape_or_type() {
    let cases: [Case<Edit>; 8] = [
        (&|t| drop(t.remove(NORM)), &[NORM, "found nothing", "[64]"]),
        (&|t| t.retain(|name, _| !name.contains("up_proj")), &["layers.0.mlp.up_proj", "and 1 more", "[128, 64]"]),
        (&|t| drop(t.remove("lm_head.weight")), &["lm_head.weight", "tie_word_embeddings"]),
        (&|t| t.get_mut(NORM).unwrap().1 = vec![8, 8], &[SINGLE, NORM, "[8, 8]", "expected [64]"]),
        (&|t| t.get_mut(NORM).unwrap().0 = Dtype::I16, &[SINGLE, NORM, "I16", "BF16, F16 or F32"]),
        (
            &|t| drop(t.insert("model.layers.0.self_attn.q_norm.weight".into(), (Dtype::F32, vec![1], vec![0; 4]))),
            &[SINGLE, "q_norm", "not part of a LlamaForCausalLM"],
        ),
        (
            &|t| drop(t.insert("model.layers.1.self_attn.q_proj.bias".into(), (Dtype::F32, vec![1], vec![0; 4]))),
            &[SINGLE, "q_proj.bias", "attention_bias"],
        ),
        (
            &|t| drop(t.insert(format!("{NORM}.absmax"), (Dtype::U8, vec![1], vec![0]))),
            &[SINGLE, "absmax", "part of a quantized weight"],
        ),
    ];
    for (change, words) in cases {
        let dir = model(1);
        edit(dir.path().join(SINGLE), change);
        refused(&dir, words);
    }
}

#[test]
fn harmless_extra_tensors_are_noted_and_not_part_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let config = Arch { tie_word_embeddings: true, ..tiny_arch() };
    Synthetic::new(config.clone(), 1).write(dir.path()).unwrap();
    let fingerprint = Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap();
    edit(dir.path().join(SINGLE), |tensors| {
        let head = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), head);
        tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (Dtype::F32, vec![8], vec![0; 32]));
    });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().count(), config.tensors().len());
    assert_eq!(checkpoint.fingerprint().unwrap(), fingerprint);
    let notes = checkpoint.notes().join("; ");
    assert!(checkpoint.notes().len() == 2 && notes.contains("lm_head.weight") && notes.contains("inv_freq"), "{notes}");

    // In another type the values are still the embedding's.
    edit(dir.path().join(SINGLE), |tensors| {
        let (_, _, data) = tensors.get_mut("lm_head.weight").unwrap();
        let wide = data.chunks_exact(2).flat_map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32().to_le_bytes());
        let wide: Vec<u8> = wide.collect();
        tensors.insert("lm_head.weight".into(), (Dtype::F32, vec![96, 64], wide));
    });
    assert_eq!(Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap(), fingerprint);
    edit(dir.path().join(SINGLE), |tensors| tensors.get_mut("lm_head.weight").unwrap().1 = vec![64, 96]);
    refused(&dir, &["lm_head.weight", "[64, 96]", "[96, 64]"]);
}

/// A checkpoint that `LlamaModel` saved, without an output layer: transformers reads it as the whole model.
#[test]
fn names_without_their_prefix_are_read_as_those_of_the_whole_model() {
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
    for shards in [1, 3] {
        for tied in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let config = Arch { tie_word_embeddings: tied, ..tiny_arch() };
            Synthetic { shards, ..Synthetic::new(config, 1) }.write(dir.path()).unwrap();
            let whole = Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap();
            let files =
                if shards == 1 { vec![SINGLE.to_owned()] } else { (1..=shards).map(|i| shard(i, shards)).collect() };
            for file in files {
                let rename = |tensors: &mut BTreeMap<String, Raw>| {
                    *tensors = std::mem::take(tensors).into_iter().map(|(name, raw)| (bare(&name), raw)).collect();
                };
                edit(dir.path().join(file), rename);
            }
            if shards > 1 {
                edit_index(&dir, |map| {
                    *map = std::mem::take(map).into_iter().map(|(name, file)| (bare(&name), file)).collect();
                });
            }
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            assert_eq!(checkpoint.fingerprint().unwrap(), whole, "{shards} {tied}");
            let notes = checkpoint.notes().join("; ");
            assert!(checkpoint.notes().len() == 1 && notes.contains("no `model.`"), "{notes}");
        }
    }
    // Only some of them: something else is wrong.
    let dir = model(1);
    edit(dir.path().join(SINGLE), |tensors| {
        let norm = tensors.remove("model.norm.weight").unwrap();
        tensors.insert("norm.weight".into(), norm);
    });
    refused(&dir, &["`model.norm.weight`", "found nothing"]);
}

#[test]
fn an_output_layer_of_its_own_is_used_though_config_json_ties_it() {
    let tied = Arch { tie_word_embeddings: true, ..tiny_arch() };
    let untied = tempfile::tempdir().unwrap();
    Synthetic::new(tiny_arch(), 1).write(untied.path()).unwrap();
    let expected = Checkpoint::open(untied.path()).unwrap().fingerprint().unwrap();
    let head = tensors_of(&untied.path().join(SINGLE)).remove("lm_head.weight").unwrap();
    let with_head = |head: Raw| {
        let dir = tempfile::tempdir().unwrap();
        Synthetic::new(tied.clone(), 1).write(dir.path()).unwrap();
        edit(dir.path().join(SINGLE), |tensors| drop(tensors.insert("lm_head.weight".into(), head)));
        dir
    };
    let dir = with_head(head.clone());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(!checkpoint.arch().tie_word_embeddings);
    assert_eq!(checkpoint.fingerprint().unwrap(), expected, "that of the model that says so");
    // One value is enough, the last one too.
    let mut last = tensors_of(&dir.path().join(SINGLE)).remove("model.embed_tokens.weight").unwrap();
    *last.2.last_mut().unwrap() ^= 1;
    assert!(!Checkpoint::open(with_head(last).path()).unwrap().arch().tie_word_embeddings);

    // The output of quantize records this itself.
    let out = untied.path().join("nf4");
    let options = QuantizeOptions { nf4: Nf4Options::default(), skip_modules: Vec::new(), max_shard_bytes: 1 << 30 };
    quantize(&checkpoint, &out, &options, &mut |_| Ok(())).unwrap();
    let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(Checkpoint::open(&out).unwrap().fingerprint().unwrap(), expected);
}

#[test]
fn indexes_that_name_files_outside_the_directory() {
    let outside = model(1);
    let absolute = outside.path().join(SINGLE).display().to_string();
    for file in ["../model.safetensors", &absolute, "a/../../b.safetensors", "", "./x.safetensors", ".."] {
        let dir = model(2);
        edit_index(&dir, |map| drop(map.insert(NORM.into(), json!(file))));
        refused(&dir, &[INDEX, NORM, "inside the directory"]);
    }
    let dir = model(2);
    edit_index(&dir, |map| drop(map.insert(NORM.into(), json!("model.bin"))));
    refused(&dir, &[INDEX, NORM, "model.bin", ".safetensors"]);
}

#[test]
fn indexes_and_shards_that_disagree() {
    let dir = model(3);
    fs::remove_file(dir.path().join(shard(2, 3))).unwrap();
    refused(&dir, &[&shard(2, 3), "no such file", "shard", "download"]);

    let dir = model(3);
    let bytes = fs::read(dir.path().join(shard(3, 3))).unwrap();
    fs::write(dir.path().join(shard(3, 3)), &bytes[..bytes.len() - 2]).unwrap();
    refused(&dir, &[&shard(3, 3), "truncated"]);

    let embedding = "model.embed_tokens.weight";
    let dir = model(3);
    edit(dir.path().join(shard(1, 3)), |tensors| drop(tensors.remove(embedding)));
    refused(&dir, &[embedding, "found nothing", "[96, 64]"]);

    let dir = model(3);
    let copy = tensors_of(&dir.path().join(shard(1, 3)))[embedding].clone();
    edit(dir.path().join(shard(2, 3)), |tensors| drop(tensors.insert(embedding.into(), copy)));
    refused(&dir, &[embedding, &shard(1, 3), &shard(2, 3), "once"]);

    for text in ["{", "[]", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 1}}", "{}"] {
        fs::write(dir.path().join(INDEX), text).unwrap();
        refused(&dir, &[INDEX, "not an index of shards"]);
    }
    fs::write(dir.path().join(INDEX), "{\"weight_map\": {}}").unwrap();
    refused(&dir, &[INDEX, "no tensors"]);
    fs::write(dir.path().join(INDEX), "{\"weight_map\": {\"a\": \"x.safetensors\", \"a\": \"y.safetensors\"}}")
        .unwrap();
    refused(&dir, &[INDEX, "`a` appears twice"]);
}

/// Tensors that are needed and present are loaded, with a sentence on the difference.
#[test]
fn an_index_out_of_step_with_its_shards_loads() {
    let embedding = "model.embed_tokens.weight";
    let expected = Checkpoint::open(model(3).path()).unwrap().fingerprint().unwrap();
    let loads = |change: &dyn Fn(&TempDir), words: &[&str]| {
        let dir = model(3);
        change(&dir);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.fingerprint().unwrap(), expected, "{words:?}");
        let notes = checkpoint.notes().join("; ");
        assert!(words.iter().all(|word| notes.contains(word)) && checkpoint.notes().len() == 1, "{notes}");
    };
    let (first, third) = (shard(1, 3), shard(3, 3));
    loads(
        &|dir| edit_index(dir, |map| drop(map.insert(embedding.into(), json!(third)))),
        &[INDEX, embedding, &first, &third],
    );
    loads(&|dir| edit_index(dir, |map| drop(map.remove(embedding))), &[INDEX, embedding, "not listed"]);
    loads(&|dir| edit_index(dir, |map| drop(map.insert("x".into(), json!(third)))), &[INDEX, "`x` is nowhere"]);
    loads(
        &|dir| edit_index(dir, |map| drop(map.insert("x".into(), json!("model-9.safetensors")))),
        &[INDEX, "model-9.safetensors is not there", "and 1 more"],
    );
    // A shard that the index does not list at all, and a tensor that nobody needs.
    loads(&|dir| edit_index(dir, |map| map.retain(|_, file| *file != json!(third))), &[INDEX, "not listed"]);
    let stale: Raw = (Dtype::F32, vec![1], vec![0; 4]);
    loads(
        &|dir| edit(dir.path().join(&first), |tensors| drop(tensors.insert("old.weight".into(), stale.clone()))),
        &[INDEX, "`old.weight` is not listed"],
    );
}

#[test]
fn links_as_in_the_hugging_face_cache_are_followed() {
    let blobs = model(2);
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("models--org--tiny-llama/snapshots/0123abc");
    fs::create_dir_all(&snapshot).unwrap();
    for name in contents(blobs.path()).into_keys() {
        std::os::unix::fs::symlink(blobs.path().join(&name), snapshot.join(&name)).unwrap();
    }
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    let base = checkpoint.base_name();
    assert_eq!((&base.name[..], base.revision.as_deref(), base.is_hub), ("org/tiny-llama", Some("0123abc"), true));
    assert_eq!(checkpoint.fingerprint().unwrap(), Checkpoint::open(blobs.path()).unwrap().fingerprint().unwrap());
    assert!(!Checkpoint::open(blobs.path()).unwrap().base_name().is_hub);
}
