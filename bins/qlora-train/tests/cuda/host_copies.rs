//! Weights in host memory of which the processes of a machine have one copy.

use crate::commands::{Directory, free_port, train};
use std::fs;
use std::process::{Child, Output, Stdio};

/// Variables of one rank, beside the launcher's.
type Variables = Vec<(&'static str, &'static str)>;

/// All ranks of a run, begun: each with its command line and variables.
fn begun(
    directory: &Directory,
    world: usize,
    line: &dyn Fn(usize) -> String,
    more: &dyn Fn(usize) -> Variables,
) -> Vec<Child> {
    let (port, size) = (free_port().to_string(), world.to_string());
    let one = |rank: usize| {
        let own = rank.to_string();
        let mut variables = vec![("RANK", own.as_str()), ("LOCAL_RANK", own.as_str())];
        variables.extend([("WORLD_SIZE", size.as_str()), ("MASTER_PORT", port.as_str())]);
        // One GPU serves all.
        variables.extend([("MASTER_ADDR", "127.0.0.1"), ("QLORA_JOIN_SECONDS", "60"), ("CUDA_VISIBLE_DEVICES", "0")]);
        variables.extend(more(rank));
        let mut command = directory.command(&line(rank), &variables);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..world).map(one).collect()
}

fn ended(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two steps, each of a micro-batch of every rank.
fn line(out: &str, more: &str) -> String {
    let line = train(&format!("--output-dir {out} --device cuda {more}")).replace("--max-steps 4", "--max-steps 2");
    let line = line.replace("--gradient-accumulation-steps 2", "--gradient-accumulation-steps 1");
    if more.contains("--use-dora") { line.replace("--lora-dropout 0.1 ", "") } else { line }
}

fn adapter(directory: &Directory, out: &str) -> Vec<u8> {
    fs::read(directory.path(out).join("adapter_model.safetensors")).unwrap()
}

/// The adapter of a run that all ranks bring to its good end, and what rank 0 said.
#[track_caller]
fn trained(
    directory: &Directory,
    out: &str,
    world: usize,
    settings: &dyn Fn(usize) -> String,
    more: &dyn Fn(usize) -> Variables,
) -> (Vec<u8>, String) {
    let all = ended(begun(directory, world, &|rank| line(out, &settings(rank)), more));
    assert!(all.iter().all(|output| output.status.success()), "{:?}", all.iter().map(errors).collect::<Vec<_>>());
    (adapter(directory, out), errors(&all[0]))
}

const SHARED: &str = "of weights in host memory is shared by";
const APART: &str = "cannot share weights in host memory with the others of its machine";

#[test]
fn processes_that_share_weights_give_the_bytes_of_copies_of_their_own() {
    let directory = Directory::small();
    // Norms of rows are computed from weights before the first step.
    for (name, world, more) in [("three", 3, ""), ("dora", 2, "--use-dora true")] {
        let run = |out: &str, weights: &str, variables: Variables| {
            let settings = format!("--weights {weights} {more}");
            trained(&directory, &format!("{name}-{out}"), world, &|_| settings.clone(), &|_| variables.clone())
        };
        let (resident, said) = run("resident", "resident", Vec::new());
        assert!(!said.contains(SHARED) && !said.contains(APART), "{said}");
        let (own, said) = run("own", "host", vec![("QLORA_SHARED_WEIGHTS", "off")]);
        assert!(!said.contains(SHARED) && !said.contains(APART), "{said}");
        assert_eq!(
            said.matches("of weights in host memory, as QLORA_SHARED_WEIGHTS=off asks").count(),
            world,
            "{said}"
        );
        let (shared, said) = run("shared", "host", Vec::new());
        assert!(said.contains(&format!("{SHARED} {world} processes of a machine")) && !said.contains(APART), "{said}");
        assert!(resident == own && own == shared, "{name}");
    }
}

/// An output layer that waits in host memory is in the copy too, after the layers or alone.
#[test]
fn processes_share_an_output_layer_too() {
    let directory = Directory::small();
    let run = |out: &str, settings: &str, variables: Variables| {
        trained(&directory, out, 2, &|_| settings.to_owned(), &|_| variables.clone())
    };
    let (resident, _) = run("resident", "--weights resident --lm-head resident", Vec::new());
    for (out, weights) in [("both", "host"), ("alone", "resident")] {
        let settings = format!("--weights {weights} --lm-head host");
        let (own, said) = run(&format!("{out}-own"), &settings, vec![("QLORA_SHARED_WEIGHTS", "off")]);
        assert!(!said.contains(SHARED) && said.contains("lm_head waits in host memory"), "{said}");
        let (shared, said) = run(out, &settings, Vec::new());
        assert!(said.contains(&format!("{SHARED} 2 processes of a machine")) && !said.contains(APART), "{said}");
        assert!(resident == own && own == shared, "{out}");
    }
}

/// Ranks of which one has its weights on the GPU: the other one's are its own.
#[test]
fn processes_that_plan_other_weights_in_host_memory_share_none() {
    let directory = Directory::small();
    let (alike, _) = trained(&directory, "alike", 2, &|_| "--weights host".to_owned(), &|_| Vec::new());
    let settings = |rank: usize| format!("--weights {}", ["host", "resident"][rank]);
    let (apart, said) = trained(&directory, "apart", 2, &settings, &|_| Vec::new());
    assert!(said.contains("rank 1 (") && said.contains(" has 0 B of weights in host memory, rank 0 ("), "{said}");
    assert!(said.contains("each holds its own") && !said.contains(SHARED), "{said}");
    assert!(alike == apart);
}

#[test]
fn a_word_that_says_neither_on_nor_off_is_refused() {
    let directory = Directory::small();
    let ranks = begun(&directory, 2, &|_| line("out", ""), &|_| vec![("QLORA_SHARED_WEIGHTS", "no")]);
    for output in ended(ranks) {
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("QLORA_SHARED_WEIGHTS: found \"no\", expected \"on\" or \"off\""), "{said}");
    }
    assert!(!directory.path("out").exists());
}

#[cfg(all(feature = "emulation", target_os = "linux"))]
mod emulated {
    use super::*;
    use qlora_train::files::failpoint;
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    /// A mapping of the file that holds weights.
    #[derive(Debug, PartialEq, Eq)]
    struct Mapped {
        access: String,
        /// Device and number of the file
        file: (String, String),
        bytes: u64,
    }

    /// Those of the processes that run in the directory, by process.
    fn mapped(directory: &Directory) -> BTreeMap<u32, Vec<Mapped>> {
        let here = fs::canonicalize(directory.path(".")).unwrap();
        let mut found = BTreeMap::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let process = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let Some(process) = process else { continue };
            if fs::read_link(entry.path().join("cwd")).ok().as_ref() != Some(&here) {
                continue;
            }
            let maps = fs::read_to_string(entry.path().join("maps")).unwrap_or_default();
            let lines = maps.lines().filter(|line| line.contains("/memfd:qlora-weights"));
            let of = |line: &str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let (first, end) = fields[0].split_once('-').unwrap();
                let address = |text| u64::from_str_radix(text, 16).unwrap();
                let (access, file) = (fields[1].to_owned(), (fields[3].to_owned(), fields[4].to_owned()));
                Mapped { access, file, bytes: address(end) - address(first) }
            };
            found.insert(process, lines.map(of).collect());
        }
        found
    }

    /// Waits for the processes of the directory to be so.
    #[track_caller]
    fn wait_until(directory: &Directory, is_so: impl Fn(&BTreeMap<u32, Vec<Mapped>>) -> bool) {
        let begun = Instant::now();
        while !is_so(&mapped(directory)) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", mapped(directory));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Names in the memory that files of this machine may have beside those of the test's own runs.
    fn named_in_memory() -> Vec<String> {
        let names = fs::read_dir("/dev/shm").into_iter().flatten().filter_map(Result::ok);
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.contains("qlora"))
            .collect()
    }

    /// Two processes read one file, which neither can write, of the bytes that were planned; each counts a half of it.
    #[test]
    fn the_copy_is_one_file_of_the_planned_bytes() {
        let directory = Directory::new();
        const HOST: &str = "--weights host --lm-head host";
        let settings = format!("--model model --data rows.jsonl --max-length 64 --lora-r 24 --device cuda {HOST}");
        let (plan, _) = directory.done(&format!("plan --json {settings} --processes 2"));
        let (alone, _) = directory.done(&format!("plan --json {settings}"));
        let shared = ["layers' weights in host memory", "lm_head in host memory"];
        let on_host = |plan: &serde_json::Value| -> u64 {
            let buffers = plan["buffers"].as_array().unwrap().iter();
            buffers
                .filter(|one| shared.contains(&one["name"].as_str().unwrap()))
                .map(|one| one["bytes"].as_u64().unwrap())
                .sum()
        };
        let bytes = plan["shared_weights"]["bytes"].as_u64().unwrap();
        assert_eq!(plan["shared_weights"]["processes"], 2);
        assert!(alone["shared_weights"].is_null());
        assert_eq!((on_host(&alone), on_host(&plan)), (bytes, bytes / 2));
        let of_all = |plan: &serde_json::Value| plan["host"]["peak_bytes"].as_u64().unwrap();
        assert_eq!(of_all(&alone) - of_all(&plan), bytes / 2);
        // Both have it for as long as they are at their first micro-batch.
        let pause = |_: usize| vec![(failpoint::VARIABLE, "micro-batch:1:pause:5000")];
        let ranks = begun(&directory, 2, &|_| line("out", HOST), &pause);
        let is_one = |all: &BTreeMap<u32, Vec<Mapped>>| {
            let each: Vec<&Mapped> = all.values().flatten().collect();
            all.len() == 2
                && all.values().all(|one| one.len() == 1)
                && each
                    .iter()
                    .all(|one| **one == *each[0] && one.access == "r--s" && one.bytes == bytes.next_multiple_of(4096))
        };
        wait_until(&directory, is_one);
        let all = ended(ranks);
        assert!(all.iter().all(|output| output.status.success()), "{}", errors(&all[0]));
        assert!(mapped(&directory).is_empty() && named_in_memory().is_empty(), "{:?}", named_in_memory());
    }

    /// A device that does not pin what others have allocated keeps its rank from sharing, and nobody else.
    #[test]
    fn a_rank_that_cannot_share_says_so_and_gives_the_same_bytes() {
        let directory = Directory::small();
        let host = |_: usize| "--weights host".to_owned();
        for (world, sharers) in [(2, None), (3, Some(2))] {
            let out = |name: &str| format!("{name}{world}");
            let (whole, _) = trained(&directory, &out("whole"), world, &host, &|_| Vec::new());
            let refused = |rank: usize| -> Variables {
                let refused = ("QLORA_EMULATION_PINNING", "refused");
                Some(refused).filter(|_| rank == 1).into_iter().collect()
            };
            let (apart, said) = trained(&directory, &out("apart"), world, &host, &refused);
            assert!(whole == apart, "{world} ranks");
            assert!(said.contains("rank 1 (") && said.matches(APART).count() == 1, "{said}");
            assert!(said.contains("holds a copy of its own") && said.contains("cannot be pinned"), "{said}");
            let told = sharers.map(|sharers| format!("{SHARED} {sharers} processes of a machine"));
            assert_eq!(said.contains(SHARED), told.is_some(), "{said}");
            assert!(told.is_none_or(|told| said.contains(&told)), "{said}");
        }
    }

    /// The limit of a rank binds those that share a copy with it, and nobody else.
    #[test]
    fn a_rank_that_shares_nothing_has_all_of_its_own_memory() {
        let directory = Directory::new();
        let given = 1u64 << 30;
        let resident = |bytes: u64| format!("--weights resident --host-memory {bytes}");
        let plan = line("planned", &resident(given)).replacen("train", "plan", 1);
        let (plan, _) = directory.done(&format!("{plan} --processes 2"));
        let of_host = |name: &str| plan["host"][name].as_u64().unwrap();
        // Room for all but weights, which take some 270 KiB.
        let least = given - of_host("budget_bytes") + of_host("peak_bytes") + (64 << 10);
        let settings = |rank: usize| match rank {
            0 => resident(least),
            _ => format!("--weights host --host-memory {given}"),
        };
        let (apart, said) = trained(&directory, "apart", 2, &settings, &|_| Vec::new());
        assert!(said.contains("each holds its own") && !said.contains(SHARED), "{said}");
        let (alike, _) = trained(&directory, "alike", 2, &|_| resident(given), &|_| Vec::new());
        assert!(apart == alike);
    }

    /// Whichever rank dies or fails while the copy is filled, all end by its name, nothing is left, and the run begins
    /// anew.
    #[test]
    fn a_rank_that_dies_while_the_copy_is_filled_ends_all_and_leaves_nothing() {
        let directory = Directory::small();
        let host = |_: usize| "--weights host".to_owned();
        let (whole, _) = trained(&directory, "whole", 2, &host, &|_| Vec::new());
        for (of, fault, words) in [
            (0, "weights:1", "is gone"),
            (1, "weights:1", "is gone"),
            (1, "weights:1:full", "No space left on device"),
            (0, "sum:1", "is gone"),
        ] {
            let more = |rank: usize| -> Variables {
                Some((failpoint::VARIABLE, fault)).filter(|_| rank == of).into_iter().collect()
            };
            let begun_at = Instant::now();
            let all = ended(begun(&directory, 2, &|_| line("out", "--weights host"), &more));
            assert!(begun_at.elapsed() < Duration::from_secs(100), "{of} {fault}");
            let said = errors(&all[1 - of]);
            assert!(all.iter().all(|output| !output.status.success()), "{of} {fault}: {said}");
            assert!(said.contains(&format!("rank {of} (")) && said.contains(words), "{of} {fault}: {said}");
            assert!(mapped(&directory).is_empty() && named_in_memory().is_empty(), "{:?}", named_in_memory());
            // Nothing is written before the weights are there; a run that has begun is another one's place.
            let _ = fs::remove_dir_all(directory.path("out"));
        }
        let (again, said) = trained(&directory, "out", 2, &host, &|_| Vec::new());
        assert!(again == whole && said.contains(SHARED), "{said}");
    }
}
