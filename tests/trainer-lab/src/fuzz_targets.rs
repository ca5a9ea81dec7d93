//! One function a parser: any bytes at all are either read, and then what was read is consistent, or refused with the
//! status of bad input. A panic is a finding. libFuzzer calls these functions (`fuzz_targets/`), and so do the
//! trainer's tests on random mutations of the seeds (`bins/qlora-train/tests/fuzz.rs`).

use std::cell::RefCell;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use qlora_train::adapter::{Adapter, AdapterConfig, BaseQuantization, Provenance, recorded_base};
use qlora_train::arch::{Arch, Projection};
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Quantization, StateFormat};
use qlora_train::base::{self, BaseFingerprint, BaseName, Checkpoint, Fingerprint, synthetic};
use qlora_train::config::{Purpose, Settings};
use qlora_train::data::{ChatTokenizer, DataFiles, MicroBatch, UNSUPERVISED, fuzzing, load, load_once};
use qlora_train::error::Result;
use qlora_train::files::tensor::StoredType;
use qlora_train::gguf::{Gguf, write_model_dir};
use qlora_train::hub::Environment;
use qlora_train::infer::stop::Stop;
use qlora_train::lora::{LoraSpec, ParamId};
use qlora_train::model::{Llama, ModelSpec};
use qlora_train::report::{Verbosity, set_verbosity};
use qlora_train::session::host::set_threads;
use qlora_train::train::output_dir::{check_output_dir, check_recorded_base, recorded_arithmetic};
use qlora_train::train::{Identity, Snapshot};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::fixture::{CHATML, VOCAB_SIZE, chat_tokenizer, model_dir, options, small_model_dir, turns};
use crate::fuzz_files::{empty, put};
pub use crate::fuzz_outside::{hub_card, hub_id, hub_listing, rank_agreement, rank_frames, rank_meeting, token_rows};
pub use crate::fuzz_records::{cache_note, dataset_info, hub_upload, run_data};
use crate::model::Memory;

pub type Target = fn(&[u8]);

/// Name, as that of the folder of its seeds, and function.
pub const TARGETS: [(&str, Target); 31] = [
    ("rows", rows),
    ("template", template),
    ("tokenizer_config", tokenizer_config),
    ("settings", settings),
    ("model_config", model_config),
    ("safetensors", safetensors),
    ("index", index),
    ("adapter", adapter),
    ("quant_state", quant_state),
    ("tokenizer_json", tokenizer_json),
    ("side_files", side_files),
    ("parquet", parquet),
    ("csv", csv),
    ("arrow", arrow),
    ("compressed", compressed),
    ("data_folder", data_folder),
    ("generation_config", generation_config),
    ("run_record", run_record),
    ("checkpoint", checkpoint),
    ("gguf", gguf),
    ("hub_listing", hub_listing),
    ("hub_card", hub_card),
    ("hub_id", hub_id),
    ("token_rows", token_rows),
    ("rank_frames", rank_frames),
    ("rank_meeting", rank_meeting),
    ("rank_agreement", rank_agreement),
    ("dataset_info", dataset_info),
    ("hub_upload", hub_upload),
    ("run_data", run_data),
    ("cache_note", cache_note),
];

/// Prepares a program that runs one target: its only thread does what is done in parallel, and nothing is said of what
/// is read.
pub fn begin() {
    set_verbosity(Verbosity::Quiet);
    set_threads(Some(1)).expect("a program begins once");
}

/// Every refusal is bad input's: work that failed, or a panic, is not an answer to a file.
fn refused<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_eq!(error.exit_status(), 2, "{error}");
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < 20_000, "a message of {} bytes", text.len());
            None
        }
    }
}

/// A directory for the files of one execution, kept for all executions of a thread.
macro_rules! scratch {
    ($make:expr) => {{
        thread_local!(static DIR: TempDir = $make);
        DIR.with(|dir| dir.path().to_owned())
    }};
}

/// A directory of these files, which stay.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = empty();
    files.iter().for_each(|(name, content)| fs::write(dir.path().join(name), content).unwrap());
    dir
}

/// One of two ways, where each execution goes one: changes of an input change its length.
fn is_even(data: &[u8]) -> bool {
    data.len().is_multiple_of(2)
}

/// A file of rows: JSON Lines, one JSON array, or Parquet.
pub fn rows(data: &[u8]) {
    thread_local!(static TOKENIZER: ChatTokenizer = chat_tokenizer(CHATML));
    let path = scratch!(empty()).join("rows.jsonl");
    put(&path, data);
    let paths = [path];
    TOKENIZER.with(|tokenizer| {
        let read = match is_even(data) {
            true => load_once(&paths, &|| Ok(tokenizer), &options()),
            false => load(&paths, Some(tokenizer), &options()),
        };
        let Some(data) = refused(read) else { return };
        assert!(!data.rows.is_empty());
        for row in &data.rows {
            assert!(row.len() <= options().max_length && row.labels.len() == row.len() && row.supervised() > 0);
            assert!(row.input_ids.iter().all(|&id| (id as usize) < VOCAB_SIZE));
            assert!(row.labels.iter().all(|&label| label == UNSUPERVISED || (0..VOCAB_SIZE as i32).contains(&label)));
        }
        assert_eq!(MicroBatch::new(&data.rows).supervised, data.report.supervised_tokens);
    });
}

/// The tokenizer of targets that do not read one, with a template whose habits are known.
fn chatml(dir: &TempDir) -> ChatTokenizer {
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    assert!(!tokenizer.turn_end_ids().is_empty());
    tokenizer
}

/// Opens the tokenizer of a directory. One without a template gets one that was compiled before.
fn opened(dir: &Path, chat_template: Option<&str>) -> Option<ChatTokenizer> {
    thread_local!(static OTHER: ChatTokenizer = chatml(&small_model_dir(Some(CHATML))));
    let mut tokenizer = refused(ChatTokenizer::open(dir, chat_template))?;
    if tokenizer.template().is_none() {
        OTHER.with(|other| fuzzing::take_template(&mut tokenizer, other));
    }
    Some(tokenizer)
}

/// A chat template, on a conversation of two answers.
pub fn template(data: &[u8]) {
    thread_local!(static TOKENIZER: RefCell<ChatTokenizer> = RefCell::new(chatml(&small_model_dir(Some(CHATML)))));
    let Ok(source) = std::str::from_utf8(data) else { return };
    let conversation =
        turns(&[("system", "s"), ("user", "hello"), ("assistant", " w "), ("user", "é🙂"), ("assistant", "he")]);
    TOKENIZER.with(|tokenizer| {
        let tokenizer = &mut *tokenizer.borrow_mut();
        if refused(fuzzing::set_template(tokenizer, source)).is_none() {
            return;
        }
        refused(tokenizer.prompt(&conversation));
        if let Ok(chat) = tokenizer.render_chat(&conversation) {
            let mut end = 0;
            for span in &chat.supervised {
                assert!(end <= span.start && chat.text.get(span.clone()).is_some(), "{span:?} of {:?}", chat.text);
                end = span.end;
            }
            let (input_ids, labels) = fuzzing::labeled(tokenizer, &chat).unwrap();
            assert_eq!(input_ids.len(), labels.len());
        }
    });
}

/// `tokenizer_config.json`.
pub fn tokenizer_config(data: &[u8]) {
    let dir = scratch!(small_model_dir(None));
    put(&dir.join("tokenizer_config.json"), data);
    if let Some(tokenizer) = opened(&dir, is_even(data).then_some("chatml")) {
        let _ = tokenizer.encode_chat(&turns(&[("user", "hello"), ("assistant", "w")]));
    }
}

/// `tokenizer.json`, of whatever model, with what is done with a tokenizer.
pub fn tokenizer_json(data: &[u8]) {
    let dir = scratch!(model_dir(None));
    put(&dir.join("tokenizer.json"), data);
    let Some(tokenizer) = opened(&dir, None) else { return };
    let ids = refused(tokenizer.encode("hello  wörld 🙂\n\t\u{1}<eos>")).unwrap_or_default();
    // The library may fail on what it has made itself: that is an error with the file's name.
    if let Err(error) = tokenizer.decode(&ids, false) {
        assert!(!error.to_string().is_empty());
    }
    let _ = tokenizer.encode_chat(&turns(&[("user", "hello"), ("assistant", "w")]));
    let _ = (tokenizer.vocab_size(), tokenizer.turn_end_ids(), tokenizer.added_tokens_hash());
}

/// `special_tokens_map.json` and `added_tokens.json`: the first line and all that follows it.
pub fn side_files(data: &[u8]) {
    are_side_files(data);
}

/// True if a tokenizer is opened with the files of [`side_files`].
pub fn are_side_files(data: &[u8]) -> bool {
    let dir = scratch!(small_model_dir(None));
    let line = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    put(&dir.join("special_tokens_map.json"), &data[..line]);
    put(&dir.join("added_tokens.json"), data.get(line + 1..).unwrap_or_default());
    let Some(tokenizer) = opened(&dir, None) else { return false };
    let _ = tokenizer.encode_chat(&turns(&[("user", "hello"), ("assistant", "w")]));
    true
}

/// Rows of a file of this name.
fn rows_of(name: &str, data: &[u8]) {
    thread_local!(static TOKENIZER: ChatTokenizer = chat_tokenizer(CHATML));
    let path = scratch!(empty()).join(name);
    put(&path, data);
    TOKENIZER.with(|tokenizer| {
        let Some(data) = refused(load(&[path], Some(tokenizer), &options())) else { return };
        assert!(data.rows.iter().all(|row| row.len() <= options().max_length && row.supervised() > 0));
    });
}

/// A Parquet file.
pub fn parquet(data: &[u8]) {
    rows_of("rows.parquet", data);
}

/// A CSV file.
pub fn csv(data: &[u8]) {
    rows_of("rows.csv", data);
}

/// An Arrow file or stream.
pub fn arrow(data: &[u8]) {
    rows_of("rows.arrow", data);
}

/// Rows compressed by gzip or Zstandard, which the first bytes tell.
pub fn compressed(data: &[u8]) {
    rows_of("rows.jsonl.gz", data);
}

/// The file that `datasets` writes beside the files of a table.
pub fn data_folder(data: &[u8]) {
    thread_local!(static NO_HUB: Environment = Environment::offline(&[]));
    let dir = scratch!(folder(&[("dataset_info.json", "{}"), ("data-00000-of-00001.arrow", "")]));
    put(&dir.join("state.json"), data);
    if let Some(found) = refused(NO_HUB.with(|hub| DataFiles::find_by(std::slice::from_ref(&dir), hub))) {
        assert!(found.training.iter().all(|path| path.starts_with(&dir)), "{found:?}");
    }
}

/// `generation_config.json` of a model, which says where an answer stops.
pub fn generation_config(data: &[u8]) {
    thread_local!(static TOKENIZER: ChatTokenizer = chat_tokenizer(CHATML));
    let dir = scratch!(empty());
    put(&dir.join("generation_config.json"), data);
    TOKENIZER.with(|tokenizer| refused(Stop::of_model(&dir, &tiny(), tokenizer, true)));
}

/// `run.json`, the record of a run in its output directory.
pub fn run_record(data: &[u8]) {
    let dir = scratch!(folder(&[("adapter_config.json", "{}"), ("adapter_model.safetensors", "")]));
    put(&dir.join("run.json"), data);
    let run = serde_json::from_slice::<Value>(data);
    let recorded = run.as_ref().ok().and_then(identity_in);
    // All read the file in the same way: what is no JSON is tried on one of them.
    let is_asked = |which: usize| run.is_ok() || data.len() % 4 == which;
    if is_asked(0) {
        // Without an identity in the record it does not matter how long the run is to be.
        let lengths: &[bool] = if recorded.is_some() { &[false, true] } else { &[false] };
        OWN.with(|own| {
            for &longer in lengths {
                refused(check_output_dir(&dir, own, longer));
            }
        });
        if let Some(recorded) = &recorded {
            refused(check_output_dir(&dir, recorded, true));
            assert!(!recorded.hash().is_empty());
        }
    }
    if is_asked(1) {
        refused(check_recorded_base(&dir, "0123"));
    }
    if is_asked(2) {
        refused(recorded_arithmetic(&dir));
    }
    if is_asked(3) {
        refused(recorded_base(&dir, None));
    }
}

thread_local!(static OWN: Identity = own_identity());

fn identity_in(record: &Value) -> Option<Identity> {
    serde_json::from_value(record.get("identity")?.clone()).ok()
}

fn own_identity() -> Identity {
    identity_in(&json!({"identity": identity_json()})).expect("the identity is one")
}

fn identity_json() -> Value {
    json!({
        "settings": {"seed": 42, "lora_r": 2, "compute": "f32"}, "base_config": {"hidden_size": 16}, "tokenizer": null,
        "special_tokens": {"eos_token": "<eos>"}, "added_tokens": null, "chat_template": null, "tool_template": null,
        "clock": null, "data": ["00ff"], "val_data": [], "tokens": "0123"
    })
}

/// The files of a checkpoint that a run goes on from, with true sums: `run_state.json` and `trainer_state.json` on a
/// line each, then `optimizer.safetensors`.
pub fn checkpoint(data: &[u8]) {
    thread_local! {
        static PLACE: (TempDir, String) = adapter_with_sums();
        static MODEL: RefCell<(Cpu, Llama<Cpu>)> = RefCell::new(trainable());
    }
    let (dir, mut sums) = PLACE.with(|(dir, sums)| (dir.path().to_owned(), sums.clone()));
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    for name in ["run_state.json", "trainer_state.json", "optimizer.safetensors"] {
        let bytes = parts.next().unwrap_or_default();
        put(&dir.join(name), bytes);
        sums += &sum_line(name, bytes);
    }
    put(&dir.join("SHA256SUMS"), sums.as_bytes());
    let first = data.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let recorded = serde_json::from_slice::<Value>(first).ok().and_then(|state| identity_in(&state));
    let opened = OWN.with(|own| Snapshot::open(&dir, recorded.as_ref().unwrap_or(own)));
    let Some(saved) = refused(opened) else { return };
    let _ = saved.check_base("0123").is_ok();
    MODEL.with(|held| {
        let (cpu, model) = &mut *held.borrow_mut();
        refused(saved.restore(cpu, model));
    });
}

/// A model to restore into. What one restores, the next one restores again.
fn trainable() -> (Cpu, Llama<Cpu>) {
    let spec = ModelSpec::new(trained(), tiny(), Quantization::None, 4);
    let spec = ModelSpec { trainable: true, states: StateFormat::Blockwise8, ..spec };
    let mut cpu = Cpu::new(spec.run_shape());
    let mut memory = Memory::new(synthetic::Synthetic::new(tiny(), 1));
    let model = Llama::build(&mut cpu, &mut memory, spec, &mut |_| ()).unwrap();
    (cpu, model)
}

/// The line of a file in `SHA256SUMS`.
fn sum_line(name: &str, bytes: &[u8]) -> String {
    let mut line = String::new();
    Sha256::digest(bytes).iter().for_each(|byte| write!(line, "{byte:02x}").unwrap());
    line + "  " + name + "\n"
}

/// An adapter in a directory, and the lines of its files in `SHA256SUMS`.
fn adapter_with_sums() -> (TempDir, String) {
    let dir = empty();
    saved_adapter(dir.path());
    let line = |name: &str| sum_line(name, &fs::read(dir.path().join(name)).unwrap());
    let sums = ["adapter_config.json", "adapter_model.safetensors"].map(line).concat();
    (dir, sums)
}

/// Low-rank terms of the adapter that seeds are made of.
fn trained() -> LoraSpec {
    LoraSpec::uniform(&tiny(), &[Projection::K], 2, 4.0, 0.0)
}

/// Bytes behind the header of a GGUF file: more than its seed takes, so that others may take more.
const GGUF_DATA: usize = 20 << 10;

/// A GGUF file, read and converted: its header. The tensors hold zeros, for nothing is decided by what they hold.
pub fn gguf(data: &[u8]) {
    let dir = scratch!(empty());
    let data = [data, &[0; GGUF_DATA]].concat();
    let Some(model) = refused(Gguf::parse(&data)) else { return };
    assert!(model.tensors.values().all(|tensor| tensor.data.len() <= data.len()));
    refused(write_model_dir(&model, "someone/model", &dir));
}

/// The settings file of a run.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(settings) = refused(Settings::from_yaml(text, "run.yaml", &[])) else { return };
    for purpose in [Purpose::Train, Purpose::Plan, Purpose::Preview] {
        refused(settings.validate(purpose));
    }
}

/// Sizes of a tiny model, found once.
fn tiny() -> Arch {
    thread_local!(static TINY: Arch = tiny_arch());
    TINY.with(Arch::clone)
}

fn tiny_arch() -> Arch {
    Arch { num_layers: 1, vocab_size: 32, hidden_size: 16, intermediate_size: 16, ..synthetic::tiny_arch() }
}

/// A tiny model in a directory of its own.
fn tiny_model(shards: usize) -> TempDir {
    let dir = empty();
    synthetic::Synthetic { shards, ..synthetic::Synthetic::new(tiny(), 1) }.write(dir.path()).unwrap();
    dir
}

/// Opens a model and reads all that it holds. Returns whether it is one.
fn open_and_read(dir: &Path) -> bool {
    let Some(checkpoint) = refused(Checkpoint::open(dir)) else { return false };
    let mut fingerprint = Fingerprint::new(&checkpoint);
    for (name, shape) in checkpoint.arch().tensors() {
        let Some((values, digest)) = refused(checkpoint.read_f32_with_digest(&name)) else { return false };
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        fingerprint.add(digest).unwrap();
    }
    refused(fingerprint.finish()).is_some()
}

/// `config.json` of a model.
pub fn model_config(data: &[u8]) {
    let dir = scratch!(tiny_model(1));
    put(&dir.join("config.json"), data);
    if let Some(config) = refused(Arch::from_file(&dir.join("config.json"))) {
        let _ = (config.num_parameters(), config.q_dim(), config.kv_dim());
    }
    open_and_read(&dir);
}

/// The header of a model's `model.safetensors`, with its length; behind it stand zeros, as many as the tensors take.
pub fn safetensors(data: &[u8]) {
    is_header(data);
}

/// True if a model is read with the header of [`safetensors`].
pub fn is_header(data: &[u8]) -> bool {
    thread_local!(static ZEROS: Vec<u8> = vec![0; tensor_bytes(&tiny())]);
    let dir = scratch!(tiny_model(1));
    put(&dir.join("model.safetensors"), &ZEROS.with(|zeros| [data, zeros].concat()));
    open_and_read(&dir)
}

/// Bytes of all tensors of a model in bf16.
fn tensor_bytes(arch: &Arch) -> usize {
    arch.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() * StoredType::Bf16.size()).sum()
}

/// `model.safetensors.index.json`, beside its shards.
pub fn index(data: &[u8]) {
    let dir = scratch!(tiny_model(2));
    put(&dir.join("model.safetensors.index.json"), data);
    open_and_read(&dir);
}

/// A PEFT adapter: its configuration and its tensors, the first line and all that follows it.
pub fn adapter(data: &[u8]) {
    let dir = scratch!(empty());
    let line = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    put(&dir.join("adapter_config.json"), &data[..line]);
    put(&dir.join("adapter_model.safetensors"), data.get(line + 1..).unwrap_or_default());
    if let Some(mut adapter) = refused(Adapter::load(&dir)) {
        thread_local!(static BASE: Checkpoint = Checkpoint::open(tiny_model(1).path()).unwrap());
        BASE.with(|base| refused(adapter.check_shapes(base.arch(), base.base_name())));
        refused(adapter.fold_rslora());
    }
}

/// The quant_state of a weight as bitsandbytes stores it, beside its other parts.
pub fn quant_state(data: &[u8]) {
    is_quant_state(data);
}

/// True if the weight of [`quant_state`] is read.
pub fn is_quant_state(data: &[u8]) -> bool {
    const NAME: &str = "weight";
    const SHAPE: [usize; 2] = [32, 16];
    let path = scratch!(empty()).join("model.safetensors");
    put(&path, &quantized(NAME, SHAPE, data));
    let Some(values) = refused(base::fuzzing::nf4_weight(&path, NAME, SHAPE)) else { return false };
    assert_eq!(values.len(), SHAPE.iter().product::<usize>());
    true
}

/// A safetensors file of a weight of 4-bit codes in blocks of 64 with this state.
fn quantized(name: &str, shape: [usize; 2], state: &[u8]) -> Vec<u8> {
    let len: usize = shape.iter().product();
    let (codes, blocks) = (len / 2, len.div_ceil(64));
    tensor_file(vec![
        (name.to_owned(), "U8", vec![codes, 1], vec![0x70; codes]),
        (format!("{name}.absmax"), "F32", vec![blocks], vec![0; blocks * 4]),
        (format!("{name}.quant_map"), "F32", vec![16], nf4_map()),
        (format!("{name}.quant_state.bitsandbytes__nf4"), "U8", vec![state.len()], state.to_vec()),
    ])
}

/// A safetensors file of (name, type, shape, bytes).
fn tensor_file(tensors: Vec<(String, &str, Vec<usize>, Vec<u8>)>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn nf4_map() -> Vec<u8> {
    qlora_kernels::nf4::CODE.iter().flat_map(|code| code.to_le_bytes()).collect()
}

/// Writes an adapter of [`trained`] terms.
fn saved_adapter(dir: &Path) {
    let base = BaseName { name: "org/base".into(), revision: None, is_hub: true };
    let provenance = Provenance {
        base: base.clone(),
        base_fingerprint: BaseFingerprint { whole: "0123".into(), unquantized: "4567".into() },
        quantization: BaseQuantization::NONE,
        chat_template_sha256: None,
    };
    let mut adapter = Adapter::new(AdapterConfig::new(&base, &tiny(), &trained()), &provenance);
    let (n, k) = Projection::K.shape(&tiny());
    let module = tiny().module(0, Projection::K);
    adapter.insert(&ParamId::a(module.as_str()), [2, k], vec![0.5; 2 * k]);
    adapter.insert(&ParamId::b(module), [n, 2], vec![0.25; 2 * n]);
    adapter.save(dir).unwrap();
}

/// A checkpoint in the form that [`checkpoint`] reads.
fn saved_checkpoint() -> Vec<u8> {
    let identity = own_identity();
    let state = json!({
        "format": 2, "version": "0.1.0", "identity_hash": identity.hash(), "identity": identity_json(),
        "base_fingerprint": "0123",
        "cursor": {"step": 1, "epoch": 0, "micro_batches": 1, "steps_per_epoch": 2, "total_steps": 4, "next_rows": "00"},
        "generator": {"kind": "philox4x32-10", "seed": 42, "draw": 1},
        "progress": {
            "accumulation": {"micro_batches": 0, "loss": 0.0}, "since_log": {"sum": 1.5, "weight": 9.0},
            "whole_run": {"sum": 1.5, "weight": 9.0}, "evaluated_at": null, "without_improvement": 0,
            "stopped_early": false
        }
    });
    let trainer = json!({
        "global_step": 1, "epoch": 0.5, "max_steps": 4, "log_history": [{"step": 1, "epoch": 0.5, "loss": 1.5}],
        "best_metric": null, "best_model_checkpoint": null, "num_input_tokens_seen": 9
    });
    let (n, k) = Projection::K.shape(&tiny());
    let module = tiny().module(0, Projection::K);
    let mut tensors = Vec::new();
    for (id, len) in [(ParamId::a(module.as_str()), 2 * k), (ParamId::b(module), 2 * n)] {
        tensors.extend(["m", "v"].map(|part| (format!("{id}.{part}"), "F32", vec![len], vec![0; 4 * len])));
    }
    [state.to_string().as_bytes(), b"\n", trainer.to_string().as_bytes(), b"\n", &tensor_file(tensors)].concat()
}

/// Seeds that nobody could write by hand: (target, name, bytes).
pub fn made_seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let model = tiny_model(1);
    let shards = tiny_model(2);
    let read = |dir: &TempDir, name: &str| fs::read(dir.path().join(name)).unwrap();
    let tensors = read(&model, "model.safetensors");
    saved_adapter(model.path());
    let run = json!({
        "identity": identity_json(), "settings": {"model": "org/base"}, "base": {"fingerprint": "0123"},
        "owned": {"temporary": ".run-0123456789abcdef", "checkpoints": ["checkpoint-1"]},
        "finished": {"steps": 2, "train_loss": 1.5, "eval_loss": null, "tokens_per_second": 3.0, "peak_bytes": 9}
    });
    let config: Value = serde_json::from_slice(&read(&model, "adapter_config.json")).unwrap();
    let adapter = [config.to_string().as_bytes(), b"\n", &read(&model, "adapter_model.safetensors")].concat();
    vec![
        ("tokenizer_json", "bytes", crate::fixture::tokenizer_json().to_string().into_bytes()),
        ("safetensors", "tiny", tensors[..tensors.len() - tensor_bytes(&tiny())].to_vec()),
        ("model_config", "v5", read(&model, "config.json")),
        ("index", "two-shards", read(&shards, "model.safetensors.index.json")),
        ("adapter", "one-layer", adapter),
        ("run_record", "finished", run.to_string().into_bytes()),
        ("checkpoint", "one-layer", saved_checkpoint()),
    ]
}

/// Files that the random changes start from, under their names.
pub fn seeds(folder: &Path, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder.join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}
