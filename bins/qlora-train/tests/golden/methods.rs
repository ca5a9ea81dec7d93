//! Adapter methods: whole runs beside twenty steps of PEFT (`tests/golden/methods_files.py`).

use super::{Cut, Tensors, cosine, json, tensors, workspace};
use qlora_train::adapter::Adapter;
use qlora_train::backend::cpu::Cpu;
use qlora_train::backend::{Batch, Memory as _};
use qlora_train::base::Checkpoint;
use qlora_train::config::Settings;
use qlora_train::data::{MicroBatch, Row};
use qlora_train::lora::{ParamId, ParamKind};
use qlora_train::model::optimizer_step::{Hyperparameters, optimizer_step};
use qlora_train::model::{Llama, ModelSpec};
use qlora_train::session::model_spec::{model_spec, of_steps};
use qlora_train::train::train;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A run with a method's settings and what `more` gives beside them, in `dir`. Returns its losses and its adapter.
fn run(method: &str, dir: &Path, more: &[(&str, Value)]) -> (Vec<f64>, Adapter) {
    let golden = json(&format!("methods/{method}.json"));
    let mut given = golden["settings"].as_object().unwrap().clone();
    let path = |path: &Path| Value::from(path.display().to_string());
    given.insert(
        "model".to_owned(),
        path(&workspace().join("tests/golden").join(golden["base"].as_str().unwrap_or("qwen3"))),
    );
    given.insert("data".to_owned(), path(&workspace().join("tests/golden/methods/rows.jsonl")));
    let out = dir.join("out");
    given.insert("output_dir".to_owned(), path(&out));
    given.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    let settings = Settings::from_yaml(&Value::Object(given).to_string(), "golden", &[]).unwrap();
    train(settings).unwrap();
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let losses = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64());
    (losses.collect(), Adapter::load(&out).unwrap())
}

/// PEFT's tensors of one moment, by their keys.
fn of_moment(all: &Tensors, moment: &str) -> Tensors {
    all.iter().filter_map(|(name, values)| Some((name.strip_prefix(moment)?.to_owned(), values.clone()))).collect()
}

/// Writes PEFT's adapter as it was before the first step.
fn write_start(method: &str, dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    std::fs::write(
        dir.join("adapter_config.json"),
        json(&format!("methods/{method}.json"))["adapter_config"].to_string(),
    )
    .unwrap();
    let bytes = std::fs::read(workspace().join(format!("tests/golden/methods/{method}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let initial: BTreeMap<String, _> = file
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| Some((name.strip_prefix("initial.")?.to_owned(), view)))
        .collect();
    safetensors::serialize_to_file(initial, None, &dir.join("adapter_model.safetensors")).unwrap();
}

fn assert_losses(method: &str, losses: &[f64], bound: f64) {
    let golden = json(&format!("methods/{method}.json"));
    let expected: Vec<f64> = golden["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), expected.len());
    let worst = losses.iter().zip(&expected).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    println!("{method}: losses within {worst:.1e}");
    assert!(worst <= bound, "{method}: losses are {worst} apart");
}

/// Twenty steps from PEFT's own beginning: every loss, and the change of every tensor.
#[track_caller]
fn follows_peft(method: &str) -> Adapter {
    follows_peft_within(method, 1e-5)
}

/// [`follows_peft`] with this bound on the relative difference of losses.
#[track_caller]
fn follows_peft_within(method: &str, bound: f64) -> Adapter {
    let dir = tempfile::tempdir().unwrap();
    let start = dir.path().join("start");
    write_start(method, &start);
    let (losses, adapter) = run(method, dir.path(), &[("init_adapter", Value::from(start.display().to_string()))]);
    assert_losses(method, &losses, bound);
    let all = tensors(&format!("methods/{method}.safetensors"));
    let (initial, expected) = (of_moment(&all, "initial."), of_moment(&all, "final."));
    assert!(adapter.tensors.keys().eq(expected.keys()), "{method}: other tensors");
    // If the scale is folded into B, all of B is multiplied by one number.
    for (name, theirs) in &expected {
        let ours = in_their_order(method, name, &adapter);
        let same = cosine(ours.iter().zip(theirs).zip(&initial[name]).map(|((a, b), &start)| (a, b, start)));
        assert!(same >= 0.99999, "{method}: {name}: cosine {same}");
    }
    adapter
}

/// The values of a tensor, rows of single tokens in the order in which PEFT was given them: ours are in that of the
/// ids.
fn in_their_order(method: &str, name: &str, adapter: &Adapter) -> Vec<f64> {
    let (shape, values) = &adapter.tensors[name];
    let ours: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
    let Some(module) = name.strip_suffix(".token_adapter.trainable_tokens_delta") else { return ours };
    let golden = json(&format!("methods/{method}.json"));
    let given = &golden["settings"]["trainable_token_indices"];
    let list = given.as_object().map_or(given, |map| &map[module.rsplit('.').next().unwrap()]);
    let ids: Vec<u64> = list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    let row = |id: &u64| &ours[sorted.iter().position(|other| other == id).unwrap() * shape[1]..][..shape[1]];
    ids.iter().flat_map(row).copied().collect()
}

/// Rows of one tensor that is embedding and output layer, which PEFT writes once.
#[test]
fn rows_of_tokens_of_a_tied_model_follow_peft() {
    let adapter = follows_peft("tokens_tied");
    assert_eq!(adapter.lora_spec().unwrap().tokens, [("model.embed_tokens".to_owned(), vec![5, 17, 40])].into());
}

#[test]
fn rows_of_tokens_of_embedding_and_output_layer_follow_peft() {
    let tokens = follows_peft("tokens").lora_spec().unwrap().tokens;
    assert_eq!((&tokens["model.embed_tokens"][..], &tokens["lm_head"][..]), (&[3, 9][..], &[7, 11, 30][..]));
}

/// Its embedding is multiplied by a number, and norms are trained beside the rows.
#[test]
fn rows_of_tokens_of_a_scaled_embedding_follow_peft() {
    follows_peft_within("tokens_gemma3", 1e-4);
}

#[test]
fn ranks_and_alphas_by_patterns_follow_peft() {
    let adapter = follows_peft("patterns");
    let lora = adapter.lora_spec().unwrap();
    let term = |module: &str| (lora.terms[module].r, lora.terms[module].alpha);
    assert_eq!(term("model.layers.0.self_attn.q_proj"), (4, 16.0));
    assert_eq!(term("model.layers.1.self_attn.v_proj"), (2, 8.0));
    assert_eq!(term("model.layers.1.mlp.up_proj"), (6, 3.0));
    assert_eq!(term("model.layers.0.mlp.up_proj"), (4, 3.0));
}

#[test]
fn patterns_with_rslora_follow_peft() {
    follows_peft("patterns_rslora");
}

#[test]
fn some_layers_follow_peft() {
    let adapter = follows_peft("layers");
    assert_eq!(adapter.config.layers_to_transform, Some(vec![1]));
    let targets = |module| adapter.config.targets(module).unwrap();
    assert!(targets("model.layers.1.mlp.up_proj") && !targets("model.layers.0.mlp.up_proj"));
}

/// A tied output layer is one tensor with the embedding in training, and a second one in the adapter.
#[test]
fn whole_modules_of_a_tied_model_follow_peft() {
    let adapter = follows_peft("whole_tied");
    let [embedding, head] = ["model.embed_tokens", "lm_head"].map(|module| adapter.tensor(&ParamId::whole(module)));
    assert!(embedding == head && embedding.is_some());
    assert_eq!(adapter.config.modules_to_save.len(), 7);
    assert!(adapter.config.ensure_weight_tying && !adapter.lora_spec().unwrap().untied);
}

#[test]
fn whole_modules_follow_peft() {
    let adapter = follows_peft("whole");
    assert!(!adapter.config.ensure_weight_tying);
    let whole = adapter.lora_spec().unwrap().whole;
    assert!(whole.contains("model.layers.1.post_attention_layernorm") && !whole.contains("model.norm"), "{whole:?}");
}

/// Its norms multiply by 1 + w.
#[test]
fn whole_norms_and_a_scaled_embedding_follow_peft() {
    follows_peft_within("whole_gemma3", 1e-4);
}

/// The initial terms follow from the weights, and the adapter that is written is one for the base as it is: its product
/// is what PEFT's terms changed in twenty steps. The base less the start is rounded to 16 bits, where a difference in
/// the last bit of the start is one in that of a weight.
#[track_caller]
fn begins_as_peft(method: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (losses, adapter) = run(method, dir.path(), &[]);
    assert_losses(method, &losses, 1e-3);
    let all = tensors(&format!("methods/{method}.safetensors"));
    let (initial, last) = (of_moment(&all, "initial."), of_moment(&all, "final."));
    let pairs = adapter.lora_pairs().unwrap();
    assert_eq!(2 * pairs.len(), initial.len());
    let mut least: f64 = 1.0;
    for (module, pair) in &pairs {
        let [a, b] = [ParamId::a(module.as_str()), ParamId::b(module.as_str())].map(|id| id.peft_key());
        let r = initial[&a].len() / pair.k_in;
        assert_eq!(pair.r, 2 * r, "{module}");
        let product = |a: &[f64], b: &[f64], r: usize| -> Vec<f64> {
            let rows = b.chunks(r).flat_map(|b| (0..pair.k_in).map(move |k| (b, k)));
            rows.map(|(b, k)| b.iter().enumerate().map(|(i, b)| b * a[i * pair.k_in + k]).sum()).collect()
        };
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let ours = product(&wide(pair.a), &wide(pair.b), pair.r);
        let (now, then) = (product(&last[&a], &last[&b], r), product(&initial[&a], &initial[&b], r));
        let moved: Vec<f64> = now.iter().zip(&then).map(|(now, then)| now - then).collect();
        let same = cosine(ours.iter().zip(&moved).map(|(ours, moved)| (ours, moved, 0.0)));
        least = least.min(same);
    }
    println!("{method}: cosine of what changed at least {least}");
    assert!(least >= 0.9999, "{method}: cosine {least}");
}

#[test]
fn pissa_follows_peft() {
    begins_as_peft("pissa");
}

#[test]
fn pissa_by_a_few_sweeps_follows_peft() {
    begins_as_peft("pissa_niter");
}

#[test]
fn olora_follows_peft() {
    begins_as_peft("olora");
}

/// The settings of `methods/adalora.json`, and its rows.
fn adalora() -> (Settings, Checkpoint, Vec<Row>) {
    let golden = json("methods/adalora.json");
    let settings = Settings::from_yaml(&golden["settings"].to_string(), "golden", &[]).unwrap();
    let base = workspace().join("tests/golden").join(golden["base"].as_str().unwrap());
    let rows = std::fs::read_to_string(workspace().join("tests/golden/methods/rows.jsonl")).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let numbers = |key: &str| row[key].as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as i32);
        let (input_ids, labels) = (numbers("input_ids").map(|id| id as u32).collect(), numbers("labels").collect());
        Row { input_ids, labels, weights: Vec::new(), file: 0, line: 0, task: None }
    };
    (settings, Checkpoint::open(&base).unwrap(), rows.lines().map(row).collect())
}

/// Values of every trained tensor.
type Values = Vec<(ParamId, Vec<f32>)>;

/// Takes as many steps of the model. Returns their losses, the tensors at the end and the most that was held.
fn adalora_steps(cpu: &mut Cpu, spec: &ModelSpec, steps: u64) -> (Vec<f64>, Values, u64) {
    let (settings, checkpoint, rows) = adalora();
    let lora = of_moment(&tensors("methods/adalora.safetensors"), "initial.");
    let mut source = Cut { checkpoint: &checkpoint, lora };
    let mut model = Llama::build(cpu, &mut source, spec.clone(), &mut |_| ()).unwrap();
    let hyper = Hyperparameters::of(&settings);
    let count = settings.gradient_accumulation_steps;
    let mut losses = Vec::new();
    for step in 0..steps {
        let row = |micro| &rows[(step as usize * count + micro) % rows.len()];
        let micro_batches: Vec<MicroBatch> = (0..count).map(|micro| MicroBatch::new([row(micro)])).collect();
        let batches: Vec<Batch> = micro_batches.iter().map(Batch::from).collect();
        losses.push(optimizer_step(cpu, &mut model, &hyper, step, count, 1.0, &batches).unwrap().loss);
    }
    let values = model.param_values(cpu).unwrap().into_iter().map(|(id, _, values)| (id, values));
    (losses, values.collect(), cpu.bytes())
}

/// AdaLoRA begins with numbers of its own, and not with an adapter: the model by the same settings, and no whole run.
/// Three cuts on the way and a last one cut the ranks that PEFT cuts.
#[test]
fn adalora_follows_peft() {
    let (settings, checkpoint, _) = adalora();
    let spec = of_steps(model_spec(&settings, &checkpoint, 32, 32).unwrap(), 20).unwrap();
    let (losses, found, bytes) = adalora_steps(&mut Cpu::new(spec.run_shape()), &spec, 20);
    assert_losses("adalora", &losses, 1e-5);
    let all = tensors("methods/adalora.safetensors");
    let (initial, last) = (of_moment(&all, "initial."), of_moment(&all, "final."));
    assert_eq!(found.len(), last.len());
    let (mut left, mut least) = (0, 1.0f64);
    for (id, values) in &found {
        let (start, theirs) = (&initial[&id.peft_key()], &last[&id.peft_key()]);
        let ours: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
        if id.kind() == ParamKind::LoraE {
            let kept = |of: &[f64]| of.iter().map(|&x| x != 0.0).collect::<Vec<bool>>();
            assert_eq!(kept(&ours), kept(theirs), "{id}");
            left += kept(theirs).iter().filter(|kept| **kept).count();
            if kept(theirs).iter().all(|kept| !kept) {
                continue;
            }
        }
        let same = cosine(ours.iter().zip(theirs).zip(start).map(|((a, b), &start)| (a, b, start)));
        assert!(same >= 0.99999, "{id}: cosine {same}");
        least = least.min(same);
    }
    println!("adalora: cosine of what changed at least {least}");
    assert_eq!(left, 2 * spec.lora.terms.len());
    // Its memory is planned.
    let mut dry = Cpu::dry_run(spec.run_shape());
    assert_eq!(adalora_steps(&mut dry, &spec, 2).2, bytes);
}

#[test]
fn dora_follows_peft() {
    let adapter = follows_peft("dora");
    assert!(adapter.config.use_dora && adapter.lora_spec().unwrap().is_dora());
}

#[test]
fn dora_of_layers_with_biases_follows_peft() {
    follows_peft("dora_biases");
}
