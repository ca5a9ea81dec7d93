//! `qlora-train plan`, and the plan of `bench`

use super::answer::Answer;
use super::forecast::{Forecast, ForecastArgs, Planned};
use super::run_size::RunSize;
use super::world::{World, WorldArgs};
use crate::adapter::check_adapter;
use crate::arch::Arch;
use crate::arch::shapes::shape;
use crate::backend::{OptimizerOnHost, PlannedBuffer, Quantization};
use crate::bail_usage;
use crate::bench::stored_in_16_bits;
use crate::comm::launch::Launch;
use crate::config::{
    self, BestMetric, Purpose, SamplePrompts, Settings, SettingsArgs, StateResidency, WeightResidency,
};
use crate::data::Rows;
use crate::error::{Context, Result};
use crate::files::json::read_object;
use crate::files::units::format_bytes;
use crate::hub::Environment;
use crate::infer::questions::{Questions, check_positions};
use crate::model::ModelSpec;
use crate::report::{count, set_rank, status, thousands, trainable_line};
use crate::session::graphs;
use crate::session::host::{set_threads, threads_of_each};
use crate::session::host_copy;
use crate::session::model_spec::{
    check_cache, check_quantization, effective_settings, model_spec, model_spec_of, of_settings, of_steps,
};
use crate::session::plan::{MemoryPlan, TensorStorage};
use crate::session::predicted::{states_note, step_seconds, unpinned_note};
use crate::session::quantized_cache::{Outlook, QuantizedCache};
use crate::session::training_data::find_files_by;
use crate::session::{
    Budget, Device, Loaded, TrainingData, advice, description_alone, plan, planner, replace_adapter_by_base,
};
use crate::train::{Sums, commits_to_follow, initial_adapter};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::fmt::Write;

#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(flatten)]
    forecast: ForecastArgs,
    #[command(flatten)]
    world: WorldArgs,
}

pub fn run(args: &PlanArgs) -> Result<Answer> {
    let launch = Launch::detect()?;
    if let Some(launch) = launch.as_ref().filter(|launch| launch.rank > 0) {
        // Rank 0 answers for all.
        set_rank(launch.rank);
        return Ok(Answer { text: String::new(), json: Value::Null });
    }
    let world = World::of(&args.world, launch.as_ref())?;
    let mut settings = args.settings.load()?;
    // Each process has its part of the processors.
    let of_each = if args.forecast.measures() { threads_of_each(world.here) } else { None };
    set_threads(settings.threads.or(of_each))?;
    let gpu = args.settings.given("gpu");
    let make = |settings: &Settings, device: &Device, spec: &ModelSpec, plan: &MemoryPlan, size: Option<RunSize>| {
        Forecast::make(&args.forecast, &Planned { settings, device, spec, plan, gpu: gpu.as_deref(), size, world })
    };
    if let Some(gpu) = gpu.as_deref().filter(|_| settings.device == Some(config::Device::Cpu)) {
        bail_usage!(
            "`gpu`: found `{gpu}`, but `device: cpu` plans a run on the CPU: leave `device` out for a run on that GPU, \
             or `gpu` for one on this CPU"
        );
    }
    settings.validate(Purpose::Plan)?;
    // From here on the count of all processes: their steps equal those of one process with as many micro-batches.
    settings.gradient_accumulation_steps = settings.gradient_accumulation_steps.saturating_mul(world.size);
    replace_adapter_by_base(&mut settings)?;
    if let Some(adapter) = &settings.init_adapter {
        check_adapter(adapter).usage_context(|| "`init_adapter`".to_owned())?;
    }
    // A run that goes on stays on the commits that it began on.
    let hub = Environment::read().following(commits_to_follow(&settings));
    find_files_by(&mut settings, &hub)?;
    settings.leave_out_evaluations();
    let device = Device::choose_for_plan(&settings, gpu.as_deref())?;
    let named = named_shape(&settings)?;
    if let Some(arch) = named.map_or_else(|| described_model(&settings, &hub), |arch| Ok(Some(arch)))? {
        let rows = settings.per_device_train_batch_size;
        let (tokens, positions) = (rows * settings.max_length, settings.max_length);
        let device = device.for_model(&settings, &arch);
        check_cache(&settings)?;
        let spec = model_spec_of(&settings, &arch, of_settings(&settings), tokens, positions)?;
        let size = RunSize::of_settings(&settings, &arch, world);
        let spec = of_run(spec, size.as_ref())?;
        let forecast = |spec: &ModelSpec, plan: &MemoryPlan| make(&settings, &device, spec, plan, size.clone());
        let cache = QuantizedCache::of_settings(&settings);
        let kept = cache.as_ref().map(|cache| cache.outlook_of(&arch, &|name| stored_in_16_bits(name).dtype));
        let names = arch.names;
        let stored = |name: &str| match &cache {
            Some(cache) => cache.stored(&arch, name, stored_in_16_bits(name)),
            // `quantize` will store it in NF4, but for embedding and output layer.
            None if settings.weights == WeightResidency::Disk && ![names.embedding, names.head].contains(&name) => {
                TensorStorage { resident_as: Some(of_settings(&settings)), ..stored_in_16_bits(name) }
            }
            None => stored_in_16_bits(name),
        };
        let planned = answer(&settings, &device, spec, &stored, rows, world, &forecast)?;
        return Ok(with_cache(planned, kept.as_ref()));
    }
    let mut loaded = Loaded::open_by(&settings, &hub)?;
    loaded.set_processes_here(world.here);
    if settings.tokenized_cache.is_some() {
        // Templates get today's date, as in a run of today, so that it finds the same rows.
        loaded.set_clock(Timestamp::now());
    }
    let device = device.for_model(&settings, loaded.checkpoint.arch());
    check_quantization(&settings, &loaded.checkpoint)?;
    let kept = loaded.foresee_quantized(&settings)?;
    let checkpoint = &loaded.checkpoint;
    let per_batch = settings.per_device_train_batch_size;
    // Without data the longest batch that the settings allow is planned.
    let longest = (per_batch * settings.max_length, settings.max_length);
    // The rows stay in memory, which is part of the plan.
    let data = (!settings.data.is_empty()).then(|| TrainingData::load(&settings, &loaded)).transpose()?;
    let (tokens, positions) = data.as_ref().map_or(longest, |data| (data.tokens, data.longest));
    let questions = match &data {
        Some(data) => Questions::load(&settings, &loaded, &data.validation)?,
        // There are no rows yet that could be asked.
        None => {
            let (eval_answers, answer_match, metric_for_best_model) = (0, None, BestMetric::Loss);
            let settings = Settings { eval_answers, answer_match, metric_for_best_model, ..settings.clone() };
            Questions::load(&settings, &loaded, &Rows::default())?
        }
    };
    check_positions(&questions.prompts(), checkpoint.arch(), positions)?;
    let spec = model_spec(&settings, checkpoint, tokens, positions)?.with_prompts(questions.prompts());
    // A run refuses a wrong adapter when it begins; so does the plan.
    settings.init_adapter.as_deref().map(|path| initial_adapter(path, &settings, &loaded, &spec)).transpose()?;
    let size = match &data {
        Some(data) => Some(RunSize::of(&settings, checkpoint.arch(), data, world)),
        None => RunSize::of_settings(&settings, checkpoint.arch(), world),
    };
    let spec = of_run(spec, size.as_ref())?;
    let as_held = effective_settings(&settings, checkpoint);
    let forecast = |spec: &ModelSpec, plan: &MemoryPlan| make(&as_held, &device, spec, plan, size.clone());
    let planned = answer(&settings, &device, spec, &loaded.stored(), per_batch, world, &forecast)?;
    Ok(with_cache(planned, kept.as_ref()))
}

/// The plan with what the run finds in `quantized_cache`, where it is set.
fn with_cache(planned: Answer, kept: Option<&Outlook>) -> Answer {
    let Some(kept) = kept else { return planned };
    let Answer { mut text, mut json } = planned;
    let _ = write!(text, "\n{}", kept.line());
    json["quantized_cache"] = json!({
        "path": kept.dir.display().to_string(),
        "bytes": kept.bytes,
        "original_bytes": kept.original_bytes,
        "is_there": kept.is_there,
        "needed_bytes": kept.needed,
        "free_bytes": kept.free,
    });
    Answer { text, json }
}

/// The model of a run of this size, where that is known.
fn of_run(spec: ModelSpec, size: Option<&RunSize>) -> Result<ModelSpec> {
    match size {
        Some(size) => of_steps(spec, size.steps),
        None => Ok(spec),
    }
}

/// The shape that `model` names where there is no such directory: a plan needs no weights.
fn named_shape(settings: &Settings) -> Result<Option<Arch>> {
    let model = settings.model_path()?;
    let name = model.to_string_lossy();
    if model.exists() || name.contains('/') {
        return Ok(None);
    }
    match shape(&name) {
        Ok(_) if !settings.data.is_empty() => bail_usage!(
            "{name}: names a shape, of which there is no tokenizer here to read the rows of `data` with: leave the data \
             out (`max_length` says how long rows are), or give the directory of a model"
        ),
        Ok(_) if settings.sample_prompts != SamplePrompts::None => bail_usage!(
            "{name}: names a shape, of which there is no tokenizer here to read `sample_prompts` with: leave them out, or \
             give the directory of a model"
        ),
        arch => Ok(arch.ok()),
    }
}

/// The architecture of a model of the hub whose weights the cache lacks: a plan without rows needs no more. None: the
/// weights are there or have to be, as those of a quantized model, which say themselves how they are stored.
fn described_model(settings: &Settings, hub: &Environment) -> Result<Option<Arch>> {
    let needs_tokens = !settings.data.is_empty() || settings.sample_prompts != SamplePrompts::None;
    let Some(dir) = (if needs_tokens { None } else { description_alone(settings, hub)? }) else { return Ok(None) };
    let config = dir.join("config.json");
    if read_object(&config)?.contains_key("quantization_config") {
        return Ok(None);
    }
    let name = settings.model_path()?.display();
    status!("{name}: planned by its config.json alone; its weights are not downloaded");
    Ok(Some(Arch::from_file(&config)?))
}

/// Parts of a plan, in the order in which they are shown, and the buffers of each by the beginning of their names.
const GROUPS: [(&str, &[&str]); 5] = [
    ("weights", &["NF4 weights", "16-bit weights", "weights", "embedding", "lm_head", "norms", "biases", "rotation"]),
    ("adapters", &["LoRA", "low-rank", "adapter"]),
    ("optimizer", &["AdamW", "optimizer", "the optimi", "gradients"]),
    ("other", &["CUDA context", "CUDA graphs", "rows, tokenizer", "saving", "reading rows"]),
    ("workspace", &["workspace", "gaps", "logits", "batch", "losses", "attention over the KV"]),
];
const ACTIVATIONS: &str = "activations";

/// Bytes of each part: weights, adapters, optimizer, activations, workspace, other. No part that is empty.
fn grouped(buffers: &[PlannedBuffer]) -> Vec<(&'static str, u64)> {
    let group_of = |name: &str| {
        let of = GROUPS.iter().find(|(_, names)| names.iter().any(|begin| name.starts_with(begin)));
        of.map_or(ACTIVATIONS, |(group, _)| *group)
    };
    let total = |group: &str| -> u64 {
        buffers.iter().filter(|buffer| group_of(&buffer.name) == group).map(|buffer| buffer.bytes).sum()
    };
    let order = ["weights", "adapters", "optimizer", ACTIVATIONS, "workspace", "other"];
    order.into_iter().map(|group| (group, total(group))).filter(|(_, bytes)| *bytes > 0).collect()
}

/// Part of the limit, 40 characters being all of it.
fn bar(bytes: u64, limit: u64) -> String {
    let share = bytes as f64 / limit.max(1) as f64;
    let full = ((share * 40.0).round() as usize).min(40);
    format!("{}{}", "█".repeat(full), "·".repeat(40 - full))
}

/// Makes the forecast of a run once its memory is planned.
pub type MakeForecast<'a> = dyn Fn(&ModelSpec, &MemoryPlan) -> Result<Option<Forecast>> + 'a;

/// A plan's sentences on several processes; empty for one. `settings` count the micro-batches of all processes.
/// `of_sums`: bytes of host memory that summing gradients takes in each. `without_nccl`: the user excluded NCCL.
fn of_processes(
    settings: &Settings,
    device: &Device,
    spec: &ModelSpec,
    world: World,
    of_sums: u64,
    without_nccl: bool,
) -> Option<(String, Value)> {
    let World { size, here } = world;
    let (micro_batches, rows) = (settings.gradient_accumulation_steps, settings.per_device_train_batch_size);
    let moved = world.moved_bytes(spec.trained_parameters());
    // The amount depends on the GPUs and their links, which are not known here.
    let of_nccl = "\nGPU memory that NCCL takes for sums is not in the plan; a run takes it before it makes its own";
    let of_gpu = match (device.is_cpu(), of_sums) {
        (true, _) => String::new(),
        (false, 0) => of_nccl.to_owned(),
        (false, bytes) => format!(
            "{}\nsums in the memory of the host, as without NCCL, are in the plan: {} of what each process may use there",
            if without_nccl { "" } else { of_nccl },
            format_bytes(bytes)
        ),
    };
    let text = format!(
        "{size} processes on {}: the plan is for each; a step has {} of all of them ({} of each), of {}\n\
         a step's sum of gradients: each process sends and receives {}, and times leave it out{of_gpu}",
        count(world.machines() as u64, "machine"),
        count_of_micro_batches(micro_batches),
        micro_batches / size,
        count(rows as u64, "row"),
        format_bytes(moved)
    );
    let json = json!({
        "world_size": size,
        "local_world_size": here,
        "machines": world.machines(),
        "micro_batches_per_step": micro_batches,
        "rows_per_step": micro_batches.saturating_mul(rows),
        "sum_bytes_per_step": moved,
    });
    (size > 1).then_some((text, json))
}

fn count_of_micro_batches(number: usize) -> String {
    format!("{} micro-batch{}", thousands(number as u64), if number == 1 { "" } else { "es" })
}

/// Choices of a plan beside activations.
pub fn chosen_levers(spec: &ModelSpec) -> Map<String, Value> {
    let place = |is_on_host: bool| json!(if is_on_host { "host" } else { "resident" });
    let weights = if spec.is_streamed() { json!("disk") } else { place(spec.pinned_layers() > 0) };
    let states = match spec.optimizer_on_host {
        OptimizerOnHost::Nothing => StateResidency::Resident,
        OptimizerOnHost::States => StateResidency::Host,
        OptimizerOnHost::StatesAndMasters => StateResidency::HostWithMasters,
    };
    let all = [
        ("weights", weights),
        ("pinned_layers", json!(spec.pinned_layers())),
        ("lm_head", if spec.head_on_disk() { json!("disk") } else { place(spec.head_waits()) }),
        ("optimizer_states", json!(states.name())),
        ("token_tile", json!(spec.token_tile.filter(|&tile| tile < spec.tokens))),
    ];
    all.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// The plan of training with `spec`, in micro-batches of `rows` rows, of each process of `world`.
pub fn answer(
    settings: &Settings,
    device: &Device,
    mut spec: ModelSpec,
    stored: &dyn Fn(&str) -> TensorStorage,
    rows: usize,
    world: World,
    forecast: &MakeForecast,
) -> Result<Answer> {
    let largest = spec.lora.lengths(&spec.arch).max().unwrap_or(0);
    let sums = if world.size > 1 { Sums::planned(device)? } else { Sums::Host };
    let of_sums = sums.host_bytes(device, world.size, largest);
    let given = settings.host_memory.map(|bytes| bytes.0);
    let budget = device.budget_of_plan(settings)?.shared_in_plan(world.here, given, device.is_cpu(), of_sums);
    // With equal memory on every machine, the machine with fewest processes needs most for each.
    let sharers = given.map_or(world.here, |_| world.fewest());
    let sharers = if device.is_cpu() || !host_copy::is_allowed()? { 1 } else { sharers };
    let budget = Budget { sharers, ..budget };
    let levers = planner::Levers::of(settings);
    let mut plan = planner::choose(device, &mut spec, levers, stored, budget)?;
    let graphs = graphs::choose(settings, device, &spec, world.size, &mut plan)?;
    let asked = advice::Asked { device, spec: &spec, levers, stored, budget, rows };
    let max_length = advice::longest_row(&asked)?;
    let tokens = spec.tokens;

    let mut suggestions = Vec::new();
    if !plan.fits() {
        suggestions = advice::suggestions(&asked, max_length)?;
        // Weights that are in NF4 already were tried there.
        let in_nf4 = |name: &str| matches!(stored(name).resident_as, Some(Quantization::Nf4 { .. }));
        let mut modules = spec.arch.modules();
        let may_stay = spec.quantization != Quantization::None
            && !(spec.lora.is_dora() || spec.lora.init.changes_base())
            && !modules.any(|module| in_nf4(&format!("{module}.weight")));
        if device.is_cpu() && settings.weights != WeightResidency::Disk && may_stay {
            suggestions.push(
                "weights: disk leaves the base in the files of an NF4 checkpoint, which `qlora-train quantize` writes and \
                 `quantized_cache` keeps"
                    .to_owned(),
            );
        }
        if rows > 1 {
            suggestions.push("per_device_train_batch_size: 1 with gradient_accumulation_steps".to_owned());
        }
    }
    let trainable = spec.trained_parameters();
    let mut text =
        trainable_line(trainable, spec.arch.num_parameters().unwrap_or(u64::MAX).saturating_add(trainable)) + "\n";
    let groups = grouped(&plan.buffers);
    for (group, bytes) in &groups {
        let _ = writeln!(text, "{:>12}  {} {group}", format_bytes(*bytes), bar(*bytes, budget.limit));
    }
    let limit = format_bytes(budget.limit);
    let _ = writeln!(
        text,
        "{:>12}  {} of {limit} of {}\n",
        format_bytes(plan.peak_bytes()),
        bar(plan.peak_bytes(), budget.limit),
        plan.place()
    );
    for buffer in &plan.buffers {
        let _ = writeln!(text, "{:>12}  {}", format_bytes(buffer.bytes), buffer.name);
    }
    for buffer in &plan.on_host {
        let place = if MemoryPlan::is_pinned(buffer) { "pinned in host memory" } else { "in host memory" };
        let _ = writeln!(text, "{:>12}  {}, {place}", format_bytes(buffer.bytes), buffer.name);
    }
    for buffer in &plan.on_disk {
        let _ = writeln!(text, "{:>12}  {}", format_bytes(buffer.bytes), buffer.name);
    }
    let counts = spec.activation_counts();
    let activations = if counts.keep < counts.layers() { format!(" ({counts})") } else { String::new() };
    let head_note = planner::head_note(&spec, stored, &plan)?;
    let states = states_note(&spec, budget.limit);
    for note in [spec.tile_note(), spec.weights_note(), head_note, states].into_iter().flatten() {
        let _ = writeln!(text, "{note}: the same result");
    }
    if let Some(note) = graphs.note.filter(|_| graphs.is_on) {
        let _ = writeln!(text, "{note}");
    }
    let verdict = |bytes: u64, limit: u64| match bytes.checked_sub(limit) {
        None | Some(0) => format!("fits in {}", format_bytes(limit)),
        Some(missing) => format!("does not fit in {} (short by {})", format_bytes(limit), plan::shortage(missing)),
    };
    let _ = writeln!(
        text,
        "{:>12}  of {} in all for batches of {tokens} tokens{}: {}",
        format_bytes(plan.peak_bytes()),
        plan.place(),
        activations,
        verdict(plan.peak_bytes(), budget.limit)
    );
    if !plan.on_host.is_empty() {
        let (bytes, pinned, limit) = (plan.host_bytes(), plan.pinned_bytes(), plan.host_limit);
        let what = match bytes - pinned {
            0 => "pinned in host memory in all".to_owned(),
            _ => format!("in host memory in all, {} of it pinned", format_bytes(pinned)),
        };
        let _ = writeln!(text, "{:>12}  {what}: {}", format_bytes(bytes), verdict(bytes, limit));
    }
    for note in plan.sharing_note().into_iter().chain(unpinned_note(&plan)) {
        let _ = writeln!(text, "{note}");
    }
    let positions = spec.arch.max_position_embeddings;
    let bound = if max_length >= positions { ", all positions of the model: memory would hold more" } else { "" };
    let _ = write!(text, "longest row that fits: {max_length} tokens{bound}");
    let predicted = if device.is_cpu() { Vec::new() } else { step_seconds(&spec, &plan) };
    if !predicted.is_empty() {
        let speed =
            |(card, seconds): &(String, f64)| format!("{} on {card}", thousands((tokens as f64 / seconds) as u64));
        let speeds: Vec<String> = predicted.iter().map(speed).collect();
        let _ = write!(text, "\ntokens/s, predicted, not measured: {}", speeds.join(", "));
    }
    let without_nccl = world.size > 1 && Sums::asked_word()? == Some("host");
    let processes = of_processes(settings, device, &spec, world, of_sums.unwrap_or(0), without_nccl);
    if let Some((told, _)) = &processes {
        let _ = write!(text, "\n{told}");
    }
    let forecast = forecast(&spec, &plan)?;
    if let Some(forecast) = &forecast {
        let _ = write!(text, "\n{}", forecast.text());
    }
    for suggestion in &suggestions {
        let _ = write!(text, "\nsuggestion: {suggestion}");
    }
    let place = if device.is_cpu() { "host" } else { "device" };
    let of = |place: &'static str| move |b: &PlannedBuffer| json!({"name": b.name, "place": place, "bytes": b.bytes});
    let elsewhere = plan.on_host.iter().map(of("host")).chain(plan.on_disk.iter().map(of("disk")));
    let buffers: Vec<_> = plan.buffers.iter().map(of(place)).chain(elsewhere).collect();
    let shared_weights = plan.sharers().map(|sharers| json!({"bytes": plan.weights_on_host, "processes": sharers}));
    let planned = json!({"budget_bytes": budget.limit, "peak_bytes": plan.peak_bytes()});
    let (on_device, on_host) = match device {
        Device::Cpu(_) => (json!({"budget_bytes": 0, "peak_bytes": 0}), planned),
        // The rows and one matrix on its way come on top.
        Device::Cuda(_) => (planned, json!({"budget_bytes": plan.host_limit, "peak_bytes": plan.host_bytes()})),
    };
    let mut json = json!({
        "fits": plan.fits(),
        "device": on_device,
        "host": on_host,
        "max_length": max_length,
        "step_seconds": forecast.as_ref().and_then(Forecast::measured_step_seconds),
        "recompute": counts.keep < counts.layers(),
        "offload": counts.offload > 0,
        "activations": counts.to_json(),
        "groups": groups.iter().map(|(name, bytes)| json!({"name": name, "bytes": bytes})).collect::<Vec<_>>(),
        "flops_per_micro_batch": plan.flops,
        "operations": plan.work,
        "predicted_step_seconds": predicted.into_iter().map(|(card, seconds)| (card, json!(seconds))).collect::<Map<_, _>>(),
        "buffers": buffers,
        "shared_weights": shared_weights,
        "suggestions": suggestions,
        "processes": processes.map(|(_, json)| json),
        "forecast": forecast.map(|forecast| forecast.json()),
    });
    for (name, value) in chosen_levers(&spec) {
        json[name] = value;
    }
    Ok(Answer { text, json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_in_one_group_and_bars_end_at_the_limit() {
        let buffers = [("NF4 weights", 10), ("LoRA A and B", 3), ("AdamW states", 2), ("qkv", 5), ("workspace", 1)];
        let buffers = buffers.map(|(name, bytes)| PlannedBuffer { name: name.to_owned(), bytes });
        let groups = [("weights", 10), ("adapters", 3), ("optimizer", 2), ("activations", 5), ("workspace", 1)];
        assert_eq!(grouped(&buffers), groups);
        let full = |text: String| text.chars().filter(|c| *c == '█').count();
        assert_eq!([full(bar(0, 10)), full(bar(5, 10)), full(bar(20, 10))], [0, 20, 40]);
    }
}
