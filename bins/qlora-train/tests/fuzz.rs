//! The fuzz targets (`fuzz/`), on random changes of their seeds: the same for every run, without a nightly compiler.
//!
//! `QLORA_FUZZ_EXECUTIONS` says how many changes of each target are tried; `QLORA_UPDATE_SEEDS=1` writes the seeds that
//! programs make.

use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;

use qlora_kernels::rng::RngStream;
use qlora_train::{comm, hub};
use trainer_lab::{fuzz_outside, fuzz_records, fuzz_targets};

const EXECUTIONS: usize = 1500;

/// Words that parsers branch on.
const WORDS: [&str; 48] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    "1e-999",
    "NaN",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "2147483648",
    "-9223372036854775808",
    "0.1",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\u{FEFF}",
    "{{ ",
    " }}",
    "{% for x in messages %}",
    "{% endfor %}",
    "{% if ",
    "{% endif %}",
    "{%",
    "| tojson",
    "messages",
    "input_ids",
    "labels",
    "role",
    "content",
    "assistant",
    "&a",
    "*a",
    "<<: ",
    "!!binary ",
    "- ",
    "? ",
    "\0",
];

fn below(random: &mut RngStream, end: usize) -> usize {
    random.below(end.max(1) as u32) as usize
}

/// A range that is mostly short.
fn range(random: &mut RngStream, len: usize) -> std::ops::Range<usize> {
    let start = below(random, len);
    let longest = if below(random, 8) == 0 { len } else { 16 };
    start..len.min(start + 1 + below(random, longest))
}

/// One change of `data`; `other` is another seed.
fn change(random: &mut RngStream, data: &mut Vec<u8>, other: &[u8]) {
    let at = below(random, data.len() + 1);
    match below(random, 9) {
        0 if !data.is_empty() => {
            let at = below(random, data.len());
            data[at] ^= 1 << below(random, 8);
        }
        1 if !data.is_empty() => {
            let at = below(random, data.len());
            data[at] = below(random, 256) as u8;
        }
        2 => drop(data.drain(range(random, data.len()))),
        3 => drop(data.splice(at..at, (0..1 + below(random, 8)).map(|_| random.below(256) as u8).collect::<Vec<_>>())),
        4 => {
            let copy = data[range(random, data.len())].to_vec();
            data.splice(at..at, copy);
        }
        5 => drop(data.splice(at..at, other[range(random, other.len())].to_vec())),
        6 => data.truncate(at),
        // Another number where one stands.
        7 => {
            let digit = |at: &usize| data[*at].is_ascii_digit();
            if let Some(start) = (at..data.len()).find(digit) {
                let end = (start..data.len()).find(|at| !digit(at)).unwrap_or(data.len());
                data.splice(start..end, WORDS[11 + below(random, 11)].bytes());
            }
        }
        _ => drop(data.splice(at..at, WORDS[below(random, WORDS.len())].bytes())),
    }
}

fn seeds_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds")
}

fn executions() -> usize {
    match std::env::var("QLORA_FUZZ_EXECUTIONS") {
        Ok(number) => number.parse().expect("QLORA_FUZZ_EXECUTIONS is a number"),
        Err(_) => EXECUTIONS,
    }
}

fn fuzz(name: &str) {
    let (index, run) = fuzz_targets::TARGETS
        .iter()
        .enumerate()
        .find_map(|(index, (target, run))| (*target == name).then_some((index, run)))
        .unwrap();
    let mut seeds = fuzz_targets::seeds(&seeds_folder(), name);
    assert!(!seeds.is_empty());
    // Inputs that a campaign found beyond them.
    let corpus = seeds_folder().join("../corpus");
    if corpus.join(name).is_dir() {
        seeds.extend(fuzz_targets::seeds(&corpus, name));
    }
    let seeds: Vec<Vec<u8>> = seeds.into_iter().map(|(_, bytes)| bytes).collect();
    let mut random = RngStream::new(0, index as u64);
    for execution in 0..seeds.len() + executions() {
        let mut data = seeds[execution % seeds.len()].clone();
        // The seeds as they are come first.
        if execution >= seeds.len() {
            for _ in 0..1 + below(&mut random, 6) {
                let other = below(&mut random, seeds.len());
                change(&mut random, &mut data, &seeds[other]);
            }
        }
        if catch_unwind(AssertUnwindSafe(|| run(&data))).is_err() {
            let path = std::env::temp_dir().join(format!("fuzz-{name}"));
            std::fs::write(&path, &data).unwrap();
            panic!("{name}: execution {execution} panics; its {} bytes are in {}", data.len(), path.display());
        }
    }
    println!("{name}: {} seeds, {} random changes of them", seeds.len(), executions());
}

macro_rules! targets {
    ($($name:ident),*) => {
        $(#[test] fn $name() { fuzz(stringify!($name)); })*

        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            assert_eq!(fuzz_targets::TARGETS.map(|(name, _)| name).to_vec(), run);
            for name in run {
                let program = seeds_folder().join(format!("../fuzz_targets/{name}.rs"));
                let text = std::fs::read_to_string(&program).unwrap();
                assert!(text.contains(&format!("trainer_lab::fuzz_targets::{name}(data)")), "{}", program.display());
            }
        }
    };
}

targets!(
    rows,
    template,
    tokenizer_config,
    settings,
    model_config,
    safetensors,
    index,
    adapter,
    quant_state,
    tokenizer_json,
    side_files,
    parquet,
    csv,
    arrow,
    compressed,
    data_folder,
    generation_config,
    run_record,
    checkpoint,
    gguf,
    hub_listing,
    hub_card,
    hub_id,
    token_rows,
    rank_frames,
    rank_meeting,
    rank_agreement,
    dataset_info,
    hub_upload,
    run_data,
    cache_note
);

/// Parquet files of two kinds of rows: (target, name, bytes).
fn parquet_seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use ::parquet::basic::Compression;
    use ::parquet::column::writer::ColumnWriter;
    use ::parquet::data_type::ByteArray;
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    use ::parquet::schema::parser::parse_message_type;
    let schema = "message rows { optional binary prompt (UTF8); optional binary completion (UTF8); optional group \
                  input_ids (LIST) { repeated group list { optional int64 element; } } }";
    let write = |compression| {
        let properties = WriterProperties::builder().set_compression(compression).set_created_by("seeds".to_owned());
        let schema = parse_message_type(schema).unwrap().into();
        let mut file = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut file, schema, properties.build().into()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for text in ["hello", "world"] {
            let mut column = group.next_column().unwrap().unwrap();
            let ColumnWriter::ByteArrayColumnWriter(out) = column.untyped() else { panic!("a column of text") };
            out.write_batch(&[ByteArray::from(text)], Some(&[1, 0]), None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        let ColumnWriter::Int64ColumnWriter(out) = column.untyped() else { panic!("a column of integers") };
        out.write_batch(&[3, 4, 5], Some(&[0, 3, 3, 3]), Some(&[0, 0, 1, 1])).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        file
    };
    vec![("parquet", "plain", write(Compression::UNCOMPRESSED)), ("parquet", "snappy", write(Compression::SNAPPY))]
}

/// An Arrow file and a stream of the same rows.
fn arrow_seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    let text = |values: [Option<&str>; 2]| -> ArrayRef { std::sync::Arc::new(StringArray::from(values.to_vec())) };
    let columns = [("prompt", text([Some("hello"), None])), ("completion", text([Some("world"), Some("x")]))];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut file = arrow_ipc::writer::FileWriter::try_new(Vec::new(), &rows.schema()).unwrap();
    let mut stream = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &rows.schema()).unwrap();
    file.write(&rows).and_then(|()| stream.write(&rows)).unwrap();
    vec![("arrow", "file", file.into_inner().unwrap()), ("arrow", "stream", stream.into_inner().unwrap())]
}

#[test]
fn seeds_of_what_other_programs_say_are_taken() {
    let seed = |name: &str| std::fs::read(seeds_folder().join(name)).unwrap();
    assert_eq!(fuzz_outside::rows_taken(&seed("token_rows/four-rows")), Some(4));
    assert_eq!(fuzz_outside::rows_taken(&seed("token_rows/one-row")), Some(1));
    assert_eq!(comm::fuzzing::frames(&seed("rank_frames/operations")), 3);
    assert!(comm::fuzzing::gathered(&seed("rank_frames/gathered"), 3).is_some());
    assert_eq!(comm::fuzzing::meeting(&seed("rank_meeting/three")), 3);
    assert_eq!(comm::fuzzing::meeting(&seed("rank_meeting/others")), 1);
    assert_eq!(hub::fuzzing::listing(&seed("hub_listing/model")).unwrap(), 3);
    assert_eq!(hub::fuzzing::listing(&seed("hub_listing/data-set")).unwrap(), 2);
}

/// Seeds of records are read as far as their targets go.
#[test]
fn seeds_of_records_are_taken() {
    let seed = |name: &str| std::fs::read(seeds_folder().join(name)).unwrap();
    for name in ["columns", "turns", "hub"] {
        assert!(fuzz_records::are_data_sets(&seed(&format!("dataset_info/{name}"))), "{name}");
    }
    assert!(!fuzz_records::are_data_sets(&seed("dataset_info/refused")));
    assert!(fuzz_records::is_run(&seed("run_data/finished")) && fuzz_records::is_run(&seed("run_data/begun")));
    assert!(!fuzz_records::is_run(b"{"));
    assert_eq!(fuzz_records::parts_kept(&seed("hub_upload/record")), 1);
    for (name, answers_read) in [("parts", 1), ("whole", 1), ("error", 0), ("modes", 1)] {
        assert_eq!(fuzz_records::answers_read(&seed(&format!("hub_upload/{name}"))), answers_read, "{name}");
    }
    let fingerprint = "0123456789abcdef".repeat(4);
    for name in ["fingerprint", "text"] {
        assert_eq!(fuzz_records::noted(&seed(&format!("cache_note/{name}"))), Some(fingerprint.clone()), "{name}");
    }
}

/// The files that a target puts around its input fit the seeds.
#[test]
fn seeds_of_parts_of_a_model_are_taken() {
    let seed = |name: &str| std::fs::read(seeds_folder().join(name)).unwrap();
    let mut header = seed("safetensors/tiny");
    assert!(fuzz_targets::is_header(&header));
    header[9] = b'{';
    assert!(!fuzz_targets::is_header(&header));
    assert!(fuzz_targets::is_quant_state(&seed("quant_state/single")));
    assert!(!fuzz_targets::is_quant_state(b"{}"));
    for name in ["map", "objects"] {
        assert!(fuzz_targets::are_side_files(&seed(&format!("side_files/{name}"))), "{name}");
    }
    assert!(!fuzz_targets::are_side_files(b"{}\n{\"<new>\": 41}"));
}

/// Calls of the script go on where the ones before ended: with programs that only say what libFuzzer says.
#[test]
fn a_campaign_is_done_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir(path("programs")).unwrap();
    for (name, end) in [("rows", 0), ("hub_id", 77)] {
        // Its corpus is two inputs; it executes as many as it is to, and then ends well or by a finding.
        let text = format!(
            "#!/bin/bash\nfor a in \"$@\"; do case $a in -runs=*) runs=${{a#-runs=}};; esac; done\n\
             echo '#2 INITED cov: 7'; echo \"#$runs DONE cov: 9\"\n\
             echo \"stat::number_of_executed_units: $runs\"; exit {end}\n"
        );
        let program = path("programs").join(name);
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let call = |targets: &[&str], limits: &[(&str, &str)]| {
        let mut call = Command::new("bash");
        call.arg(seeds_folder().join("../campaign.sh")).args(targets).envs(limits.iter().copied());
        call.env("PROGRAMS", path("programs")).env("RECORD", path("record.tsv")).env("WORK", path("work"));
        let done = call.env("KEEP", path("keep")).output().unwrap();
        let record = std::fs::read_to_string(path("record.tsv")).unwrap_or_default();
        let row = |line: &str| -> Vec<String> { line.split('\t').map(str::to_owned).collect() };
        (done.status.code(), record.lines().skip(1).map(row).collect::<Vec<_>>())
    };
    // Inputs of the seeds, and an empty one, stand before those that count.
    let inputs = fuzz_targets::seeds(&seeds_folder(), "rows").len() + 1;
    let counted = |new: usize| (new + inputs - 2).to_string();
    let (status, rows) = call(&["rows"], &[("RUNS", "30")]);
    assert_eq!((status, &rows[0][..2]), (Some(0), &["rows".to_owned(), counted(30)][..]));
    assert_eq!((&*rows[0][3], &*rows[0][4]), ("9", "0"));
    let (_, rows) = call(&["rows"], &[("RUNS", "30")]);
    assert_eq!(rows[0][1], (2 * (30 + inputs - 2)).to_string());
    // A goal that was come to is left alone, and no call goes on for ever behind findings.
    assert_eq!(call(&["rows"], &[("GOAL", "50")]).1, rows);
    let (status, rows) = call(&["rows", "hub_id"], &[("GOAL", "60"), ("SECONDS_ALL", "3"), ("RUNS", "5")]);
    assert_eq!((status, rows.len(), &*rows[1][0], &*rows[1][4]), (Some(1), 2, "hub_id", "1"));
    assert_eq!(call(&["no_target"], &[]).0, Some(2));
}

/// Inputs that a campaign found go into the repository, less the seeds, as far as they are small and text.
#[test]
fn a_corpus_is_kept_small() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // Like libFuzzer's, into the first folder.
    let merge = "#!/bin/bash\n[[ \" $* \" = *' -merge=1 '* ]] || exit 1\ncp \"$2\"/* \"$1\"\n";
    for (target, files) in [("hub_id", 5), ("parquet", 1)] {
        let corpus = path("work/corpus").join(target);
        std::fs::create_dir_all(&corpus).unwrap();
        (1..=files).for_each(|at| std::fs::write(corpus.join(format!("input-{at}")), "x".repeat(100 * at)).unwrap());
        let program = path(target);
        std::fs::write(&program, merge).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let call = |limits: &[(&str, &str)]| {
        let mut call = Command::new("bash");
        call.arg(seeds_folder().join("../campaign.sh")).args(["hub_id", "parquet"]).envs(limits.iter().copied());
        call.env("PROGRAMS", dir.path()).env("RECORD", path("record.tsv")).env("WORK", path("work"));
        let done = call.env("MINIMIZE", "1").env("KEEP", path("keep")).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let mut kept: Vec<String> = std::fs::read_dir(path("keep").join("hub_id"))
            .map(|names| names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        kept.sort();
        kept
    };
    let named = |count: usize| (1..=count).map(|at| format!("input-{at}")).collect::<Vec<_>>();
    assert_eq!(call(&[]), named(5));
    assert_eq!(call(&[("FILES", "2")]), named(2));
    // 100, 200, 300 and 400 bytes are less than a KiB, and 500 are too many more.
    assert_eq!(call(&[("KIB", "1")]), named(4));
    assert!(!path("keep").join("parquet").exists() && !path("record.tsv").exists());
}

/// A seed that is refused at once would leave most of a parser untried.
#[test]
fn made_seeds_are_what_the_programs_write() {
    for (target, name, bytes) in fuzz_targets::made_seeds().into_iter().chain(parquet_seeds()).chain(arrow_seeds()) {
        let path = seeds_folder().join(target).join(name);
        if std::env::var_os("QLORA_UPDATE_SEEDS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let found = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(found == bytes, "{} differs: run this test with QLORA_UPDATE_SEEDS=1", path.display());
    }
}
