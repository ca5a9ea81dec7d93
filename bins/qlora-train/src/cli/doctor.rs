//! `qlora-train doctor`: a check of what a run finds on this machine, and on the machines of all processes that a
//! launcher started.

use super::answer::Answer;
use crate::backend::cpu::Isa;
use crate::bail_usage;
use crate::comm::agreement::{Difference, agree};
use crate::comm::launch::Launch;
use crate::comm::measure::sum_seconds;
use crate::comm::{Communicator, Joined, SingleProcess, Timeouts};
use crate::config::{Device, Settings, SettingsArgs};
use crate::error::Result;
use crate::files::units::format_bytes;
use crate::hub::hub_cache;
use crate::report::{count, printable, set_rank};
use crate::session::disk::free_bytes;
use crate::session::host::{host_budget, set_threads, threads_of_each};
use crate::train::readiness::{Readiness, readiness};
use qlora_kernels::device::{KERNELS, Kernels};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use sysinfo::System;

/// The subject of the check, by the command line.
struct Asked {
    /// Number of the GPU to look at
    ordinal: usize,
    /// The settings of a run, where there are any
    run: Option<SettingsArgs>,
}

impl Asked {
    /// `--gpu` is a number here. Alone, neither it nor `--device` is a setting of a run. Refused: other values of them.
    fn of(args: &SettingsArgs) -> Result<Self> {
        let named = |key: &'static str| args.overrides.iter().filter(move |(name, _)| name == key).cloned();
        let device: Vec<(String, String)> = named("device").collect();
        let gpus: Vec<(String, String)> = named("gpu").collect();
        let overrides: Vec<_> = args.overrides.iter().filter(|(name, _)| name != "gpu").cloned().collect();
        let is_run = args.file.is_some() || overrides.len() > device.len();
        let mut ordinal: usize = match gpus.as_slice() {
            [] => 0,
            [(_, number)] if device.is_empty() => match number.parse::<usize>() {
                Ok(number) => number,
                Err(_) => bail_usage!("--gpu: found {number:?}, expected the number of a GPU, from 0"),
            },
            _ => bail_usage!("--gpu and --device name the GPU to look at: give one of them, once"),
        };
        if is_run {
            let run = SettingsArgs { file: args.file.clone(), overrides };
            if gpus.is_empty()
                && let Some(Device::Cuda(of_run)) = run.given("device").and_then(|device| device_named(&device).ok()?)
            {
                ordinal = of_run;
            }
            return Ok(Self { ordinal, run: Some(run) });
        }
        if let Some((_, given)) = device.last() {
            ordinal = match device_named(given)? {
                Some(Device::Cuda(ordinal)) => ordinal,
                _ => bail_usage!("--device: found {given:?}, expected cuda or cuda:N"),
            };
        }
        Ok(Self { ordinal, run: None })
    }
}

/// The device of this name, as settings read it.
fn device_named(name: &str) -> Result<Option<Device>> {
    Ok(Settings::load(None, &[("device".to_owned(), name.to_owned())])?.device)
}

/// One thing that was looked at.
struct Finding {
    name: &'static str,
    /// A sentence on what is missing or differs, and what to do about it.
    problem: Option<String>,
    /// It is there, but differs between processes
    differs: bool,
    text: String,
    json: Value,
}

impl Finding {
    fn good(name: &'static str, text: String, json: Value) -> Self {
        Self { name, problem: None, differs: false, text, json }
    }

    fn missing(name: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self { name, text: problem.clone(), json: Value::Null, differs: false, problem: Some(problem) }
    }
}

/// Without the settings of a run the exit status is 0 whatever was found: a machine without a GPU is no error, and
/// `gpu_usable` reports it. With them `ready` says whether the run can begin. Processes that a launcher started are
/// compared too; `build` identifies this program.
pub fn run(args: &SettingsArgs, build: &str) -> Result<Answer> {
    let asked = Asked::of(args)?;
    let mut findings = host();
    findings.extend(gpu::look(asked.ordinal));
    let mut of_run = None;
    if let Some(launch) = Launch::detect()? {
        set_rank(launch.rank);
        let mut joined = Joined::join(&launch, build, Timeouts::of_environment()?)?;
        let over = joined.over();
        let mut look = || -> Result<_> {
            let comm = joined.comm();
            // A run makes its threads before it looks for anything.
            let settings = asked.run.as_ref().map(|run| read_settings(run, comm)).transpose()?;
            let found = processes(comm, launch.launcher, &over)?;
            Ok((found, settings.map(|settings| readiness(settings, comm)).transpose()?))
        };
        let looked = look();
        joined.leave(looked.as_ref().err())?;
        let (found, ready) = looked?;
        findings.push(found);
        of_run = ready;
    } else if let Some(run) = &asked.run {
        let comm = &mut SingleProcess;
        of_run = Some(readiness(read_settings(run, comm)?, comm)?);
    }
    let gpu_usable = KERNELS == Kernels::Cuda && findings.iter().all(|finding| finding.problem.is_none());
    let of_parts: Vec<Finding> = of_run.iter().flat_map(|ready| of_run_with(ready, build)).collect();
    let ready = of_run.is_some().then(|| of_parts.iter().all(|finding| finding.problem.is_none()));
    findings.extend(of_parts);
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let lines = findings.iter().map(|finding| {
        let mark = match finding.problem {
            Some(_) if finding.differs => "differs",
            Some(_) => "missing",
            None => "ok",
        };
        format!("{mark:<8}{:width$}  {}", finding.name, printable(&finding.text))
    });
    let mut lines: Vec<String> = lines.collect();
    lines.push(if gpu_usable {
        format!("Runs can work on GPU {}.", asked.ordinal)
    } else {
        "Runs work on the CPU.".to_owned()
    });
    lines.extend(ready.map(|ready| {
        let told = if ready { "This run can begin." } else { "This run cannot begin as it is." };
        told.to_owned()
    }));
    let mut map: Map<String, Value> =
        findings.iter().map(|finding| (finding.name.replace(' ', "_"), finding.json.clone())).collect();
    let problems: Vec<&String> = findings.iter().filter_map(|finding| finding.problem.as_ref()).collect();
    map.insert("problems".to_owned(), json!(problems));
    map.insert("gpu_usable".to_owned(), json!(gpu_usable));
    if let Some(ready) = ready {
        map.insert("ready".to_owned(), json!(ready));
    }
    Ok(Answer { text: lines.join("\n"), json: Value::Object(map) })
}

/// The settings of a run, or the reason why they cannot be read; and the threads that it computes in.
fn read_settings(run: &SettingsArgs, comm: &dyn Communicator) -> Result<Result<Settings>> {
    let settings = run.load();
    let threads = settings.as_ref().ok().and_then(|settings| settings.threads);
    set_threads(threads.or_else(|| threads_of_each(comm.on_these_processors())))?;
    Ok(settings)
}

/// Differences of a part that are printed; `--json` has all
const TOLD: usize = 8;

/// The parts of a run. All processes run one program: others do not meet.
fn of_run_with(ready: &Readiness, build: &str) -> Vec<Finding> {
    let several = ready.names.len() > 1;
    let mut findings = Vec::new();
    if several {
        findings.push(Finding::good("program", format!("qlora-train {build}"), json!({"build": build})));
    }
    findings.extend(ready.parts.iter().map(|part| {
        let of = |rank: usize, told: &str| match several {
            true => format!("{}: {told}", ready.names[rank]),
            false => told.to_owned(),
        };
        let unread = part.unread.iter().map(|unread| of(unread.rank, &unread.why));
        let first = &ready.names[part.first];
        let differs = part.differences.iter().map(|difference| {
            let Difference { rank, name, there, here } = difference;
            of(*rank, &format!("has {there} in {name}, and {first} has {here}"))
        });
        let all: Vec<String> = unread.chain(differs).collect();
        let mut told: Vec<String> = all.iter().take(TOLD).cloned().collect();
        if all.len() > TOLD {
            told.push(format!("and {} more, which --json names", all.len() - TOLD));
        }
        let problem = (!all.is_empty()).then(|| told.join("; "));
        let found = part.found.clone().unwrap_or_default();
        let alike = if several && part.differences.is_empty() { ", alike for all" } else { "" };
        Finding {
            name: part.name,
            text: problem.clone().unwrap_or_else(|| format!("{found}{alike}")),
            problem,
            differs: part.unread.is_empty(),
            json: json!({
                "found": part.found,
                "missing": part.unread.iter().map(|unread| json!({"rank": unread.rank, "why": unread.why}))
                    .collect::<Vec<_>>(),
                "differences": part.differences.iter().map(|of| json!({
                    "rank": of.rank, "name": of.name, "there": of.there, "here": of.here,
                })).collect::<Vec<_>>(),
                "compared_with": if several { Some(part.first) } else { None },
            }),
        }
    }));
    findings
}

/// Numbers in a sum that is timed: the gradients of a LoRA of 0.1 % of a model of 4B
const SUMMED: usize = 1 << 22;

/// The processes of a launch, and how fast they add up `over` what. Refused: ranks on processors that compute
/// otherwise.
fn processes(comm: &mut dyn Communicator, launcher: &str, over: &str) -> Result<Finding> {
    // AMX is detected in another way, and changes the bits of a run in bf16.
    let of_processor = [
        ("the processor's instructions".to_owned(), json!(instructions())),
        ("the processor's arithmetic in bf16".to_owned(), json!(Isa::detect().map(Isa::name))),
    ];
    agree(comm, "processors", &of_processor.into_iter().collect())?;
    let (world_size, machines) = (comm.world_size(), comm.machines());
    let seconds = sum_seconds(comm, SUMMED)?;
    let bytes = (SUMMED * size_of::<f32>()) as u64;
    // Each sends and receives that.
    let moved = 2.0 * bytes as f64 * (world_size - 1) as f64 / world_size as f64;
    let speed = moved / seconds;
    Ok(Finding::good(
        "processes",
        format!(
            "{world_size} of the same program, started by {launcher}, on {}; a sum of {} over {over} takes {:.1} ms, {:.2} \
             GB/s each way",
            count(machines as u64, "machine"),
            format_bytes(bytes),
            1e3 * seconds,
            speed / 1e9
        ),
        json!({
            "launcher": launcher, "over": over, "world_size": world_size, "machines": machines, "sum_bytes": bytes,
            "sum_seconds": seconds, "bytes_per_second": speed,
        }),
    ))
}

fn host() -> Vec<Finding> {
    let mut system = System::new();
    system.refresh_memory();
    let (total, free) = (system.total_memory(), host_budget(None));
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let instructions = instructions();
    let named =
        if instructions.is_empty() { "no vector instructions known".to_owned() } else { instructions.join(", ") };
    vec![
        Finding::good(
            "processor",
            format!("{}, {named}", count(threads as u64, "thread")),
            json!({"threads": threads, "instructions": instructions}),
        ),
        Finding::good(
            "host memory",
            format!("{}, {} free", format_bytes(total), format_bytes(free)),
            json!({"total_bytes": total, "free_bytes": free}),
        ),
        disk(),
        hub(),
        nvcc(),
    ]
}

/// The compiler of the kernels, where a build looks for it. None is no problem: what was built runs without.
fn nvcc() -> Finding {
    let dirs = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os).map(|dir| PathBuf::from(dir).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_dirs = dirs.chain(std::env::split_paths(&path)).map(|dir| dir.join("nvcc"));
    let found = std::env::var_os("NVCC").map(PathBuf::from).into_iter().chain(in_dirs).find(|file| file.is_file());
    let found = found.map(|file| file.display().to_string());
    let text = found
        .clone()
        .unwrap_or_else(|| "none, and needed only to build for a GPU: `cargo xtask setup-cuda` fetches it".to_owned());
    Finding::good("nvcc", text, json!({"path": found}))
}

/// Free space for a run's files, in the working directory.
fn disk() -> Finding {
    let free = free_bytes(Path::new("."));
    let text = free.map_or("free space not known".to_owned(), |free| format!("{} free here", format_bytes(free)));
    Finding::good("disk", text, json!({"free_bytes": free}))
}

/// The local cache of the hub. Its absence is no problem: a model can be a directory.
fn hub() -> Finding {
    let cache = hub_cache().map(|path| path.display().to_string());
    let text = cache.clone().unwrap_or_else(|| "none yet; the first download creates it".to_owned());
    Finding::good("hub cache", text, json!({"path": cache}))
}

/// Instructions of this processor that make the CPU backend faster.
#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    found.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

mod gpu {
    use super::{Finding, format_bytes};
    use crate::config::LinearKernels;
    use crate::session::{CUDA_BUILD, Linear, TransferBandwidth};
    use qlora_kernels::device::{ARCHITECTURES, Device, KERNELS, Kernels, MemInfo, Nccl, cuda_version};
    use serde_json::json;

    /// Bytes that are copied each way.
    const BYTES: usize = 256 << 20;

    /// Each check depends on the one before; the first failure ends them.
    pub fn look(ordinal: usize) -> Vec<Finding> {
        let (Kernels::Cuda, Some(architectures)) = (KERNELS, ARCHITECTURES) else {
            let problem = format!(
                "this binary was built for the CPU only; in a checkout of its source, `{CUDA_BUILD}` builds one for a GPU \
                 (`cargo xtask setup-cuda` fetches nvcc where there is none)"
            );
            return vec![Finding::missing("gpu", problem)];
        };
        let mut findings = Vec::new();
        match cuda_version() {
            Ok(cuda) => findings.push(Finding::good("driver", format!("CUDA {cuda}"), json!({"cuda": cuda}))),
            Err(error) => {
                findings.push(Finding::missing("driver", format!("{error}: install NVIDIA's driver, 580 or newer")));
                return findings;
            }
        }
        let opened = Device::open_at(ordinal).and_then(|device| Ok((device.info()?, device)));
        let (info, device) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                findings.push(Finding::missing("gpu", format!("{error} (`nvidia-smi -L` lists those there are)")));
                return findings;
            }
        };
        let (major, minor) = info.compute_capability;
        findings.push(Finding::good(
            "gpu",
            format!("{}, sm_{major}{minor}, {} multiprocessors", info.gpu, info.multiprocessors),
            json!({
                "name": info.gpu, "compute_capability": format!("{major}.{minor}"),
                "multiprocessors": info.multiprocessors,
            }),
        ));
        findings.push(match code_for(architectures, major, minor) {
            Some(code) => {
                let text = format!("built for {architectures}: {code}");
                Finding::good("kernels", text, json!({"architectures": architectures, "code": code}))
            }
            None => Finding::missing(
                "kernels",
                format!(
                    "built for {architectures}, which sm_{major}{minor} cannot run: GPUs from sm_80 on are supported; build with \
                     QLORA_CUDA_ARCHS={major}{minor}"
                ),
            ),
        });
        findings.push(match Linear::on(&device, LinearKernels::Auto) {
            Ok(linear) => {
                let json = json!({"row": linear.to_string(), "dequantizes": linear.may_dequantize()});
                Finding::good("linear layers", linear.to_string(), json)
            }
            Err(error) => Finding::missing("linear layers", error.to_string()),
        });
        findings.push(match device.mem_info() {
            Ok(MemInfo { total, free }) => {
                let text = format!("{}, {} free", format_bytes(total), format_bytes(free));
                Finding::good("gpu memory", text, json!({"total_bytes": total, "free_bytes": free}))
            }
            Err(error) => Finding::missing("gpu memory", error.to_string()),
        });
        findings.push(match TransferBandwidth::measure(&device, BYTES) {
            Ok(found) => {
                let (to, from) = (found.to_device / 1e9, found.from_device / 1e9);
                let text =
                    format!("{} pinned; {to:.1} GB/s to the GPU, {from:.1} GB/s from it", format_bytes(BYTES as u64));
                Finding::good("transfer", text, json!({"to_gpu_gb_per_s": to, "from_gpu_gb_per_s": from}))
            }
            Err(error) => Finding::missing("transfer", format!("{error} (`ulimit -l` may limit pinned memory)")),
        });
        // None is no problem: only processes with a GPU each use it.
        findings.push(match Nccl::version() {
            Ok(version) => Finding::good("nccl", version.clone(), json!({"version": version})),
            Err(error) => {
                let text = format!("none, and needed only to add up gradients on several GPUs: {error}");
                Finding::good("nccl", text, json!({"version": null}))
            }
        });
        findings
    }

    /// The code, compiled by nvcc for `architectures`, that a GPU of this compute capability runs; none: it runs none.
    /// A cubin runs on its own capability and later ones of the same major; the driver compiles the PTX of the first
    /// for any later capability.
    fn code_for(architectures: &str, major: usize, minor: usize) -> Option<String> {
        let of = |arch: &str| {
            let number: usize = arch.trim_end_matches(['a', 'f']).parse().ok()?;
            Some((number / 10, number % 10, arch.ends_with('a')))
        };
        let runs = |arch: &&str| {
            of(arch).is_some_and(|(arch_major, arch_minor, exact)| {
                arch_major == major && if exact { arch_minor == minor } else { arch_minor <= minor }
            })
        };
        let all = || architectures.split(',').map(str::trim);
        if let Some(best) = all().filter(runs).max_by_key(|arch| of(arch)) {
            return Some(format!("code of sm_{best}"));
        }
        let first = all().next()?;
        let ptx = of(first)
            .is_some_and(|(arch_major, arch_minor, exact)| !exact && (arch_major, arch_minor) <= (major, minor));
        ptx.then(|| format!("PTX of sm_{first}, compiled by the driver at the first start"))
    }

    #[cfg(test)]
    mod tests {
        use super::code_for;

        #[test]
        fn a_gpu_runs_code_of_its_own_generation_or_older_ptx() {
            let built = "80,90,120";
            assert_eq!(code_for(built, 8, 0).as_deref(), Some("code of sm_80"));
            assert_eq!(code_for(built, 8, 9).as_deref(), Some("code of sm_80"));
            assert_eq!(code_for("80, 86,90", 8, 9).as_deref(), Some("code of sm_86"));
            assert_eq!(code_for("90a", 9, 0).as_deref(), Some("code of sm_90a"));
            assert!(code_for(built, 10, 0).is_some_and(|code| code.starts_with("PTX of sm_80")));
            assert_eq!(code_for(built, 7, 5), None);
            assert_eq!(code_for("90a", 10, 0), None);
        }
    }
}
