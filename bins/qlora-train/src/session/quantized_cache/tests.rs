use super::*;
use crate::base::synthetic::{Synthetic, tiny_arch};

fn cache(dir: &std::path::Path, double_quant: bool) -> QuantizedCache {
    QuantizedCache { dir: dir.join("kept"), nf4: Nf4Options { block_size: 64, double_quant }, fingerprint: None }
}

#[test]
fn room_is_needed_for_an_entry_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Synthetic::new(tiny_arch(), 1).write(&model).unwrap();
    std::fs::write(model.join("tokenizer.json"), [b' '; 5000]).unwrap();
    let checkpoint = Checkpoint::open(&model).unwrap();
    let [double, single] = [true, false].map(|double| cache(dir.path(), double));
    let mut outlook = double.outlook(&checkpoint).unwrap();
    assert_eq!((outlook.is_there, outlook.original_bytes), (Some(false), checkpoint.stored_bytes()));
    // The second quantization has tables of its own, which weigh more than what it saves of a tiny model.
    let large = Arch { hidden_size: 1024, intermediate_size: 2048, ..tiny_arch() };
    let [of_double, of_single] = [&double, &single].map(|cache| cache.outlook_of(&large, &|_| StoredType::Bf16).bytes);
    assert!(of_double < of_single, "{of_double} {of_single}");
    // With the tokenizer, which is copied.
    assert!(outlook.needed >= outlook.bytes + 5000);
    assert!(outlook.needed > double.outlook_of(checkpoint.arch(), &stored_type(&checkpoint)).needed);
    let needed = outlook.needed;
    // A run's own files may be on the same file system.
    let beside = |output: &Path| double.needed_beside(output, &checkpoint).unwrap();
    assert_eq!((beside(&dir.path().join("run/out")), beside(Path::new("/proc/self"))), (needed, 0));
    for (is_there, free, lacks_room) in [
        (Some(false), Some(needed - 1), true),
        (Some(false), Some(needed), false),
        (Some(false), None, false),
        // The run alone can tell.
        (None, Some(0), false),
        (Some(true), Some(0), false),
    ] {
        (outlook.is_there, outlook.free) = (is_there, free);
        assert_eq!(outlook.lacks_room(), lacks_room, "{is_there:?} {free:?}");
        assert_eq!(outlook.line().contains("has no room"), lacks_room, "{}", outlook.line());
    }
    double.check_room(needed, needed).unwrap();
    let refused = double.check_room(needed - 1, needed).unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("are free on its file system"), "{refused}");
}

#[test]
fn an_entry_is_named_by_its_original_and_how_it_was_quantized() {
    let dir = tempfile::tempdir().unwrap();
    let [double, single] = [true, false].map(|double| cache(dir.path(), double));
    let [one, other] = ["a", "b"].map(|digit| digit.repeat(64));
    let names = [double.name(&one), double.name(&other), single.name(&one)];
    let expected = [("a", "-nf4-64-double"), ("b", "-nf4-64-double"), ("a", "-nf4-64")];
    assert_eq!(names, expected.map(|(digit, ending)| digit.repeat(32) + ending));
    let has_any = || [&double, &single].map(QuantizedCache::has_any);
    assert_eq!(has_any(), [false, false]);
    for (name, expected) in [
        ("another-nf4-64-double".to_owned(), [false, false]),
        (format!(".{}", double.name(&one)), [false, false]),
        (single.name(&one), [false, true]),
        (double.name(&other), [true, true]),
    ] {
        std::fs::create_dir_all(double.dir.join(name)).unwrap();
        assert_eq!(has_any(), expected);
    }
}

/// An entry is found by the note alone, and by the bytes where there is no note.
#[test]
fn what_was_made_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Synthetic::new(tiny_arch(), 1).write(&model).unwrap();
    let original = || Checkpoint::open(&model).unwrap();
    let go_on = || Ok(());
    assert!(cache(dir.path(), true).find(&original()).unwrap().is_none());
    let made = cache(dir.path(), true).make_while(&original(), &go_on).unwrap();
    let fingerprint = original().fingerprint().unwrap();
    assert_eq!(made.original().unwrap().fingerprint, fingerprint);
    let found = cache(dir.path(), true).find(&original()).unwrap().unwrap();
    assert_eq!(found.dir(), made.dir());
    assert!(cache(dir.path(), false).find(&original()).unwrap().is_none());
    // The model is the same with those weights, but for how they are stored.
    let mut with = original();
    with.take_weights_of(found).unwrap();
    assert_eq!((with.dir(), with.fingerprint().unwrap()), (model.as_path(), fingerprint));
    assert!(with.quantization().is_some() && with.skipped_modules().is_empty());
    assert!(with.original().is_none(), "the model is the original");
    let other = dir.path().join("other");
    Synthetic::new(crate::arch::Arch { num_layers: 1, ..tiny_arch() }, 1).write(&other).unwrap();
    let refused = Checkpoint::open(&other).unwrap().take_weights_of(made).unwrap_err().to_string();
    assert!(refused.contains("tensors of another model"), "{refused}");
    let noted = |key: &str| cache(dir.path(), true).noted(key);
    for (fingerprint, is_known) in [("f".repeat(64), true), ("f".repeat(63), false), ("../".repeat(22), false)] {
        remember(&dir.path().join("kept"), "key", &fingerprint).unwrap();
        assert_eq!(noted("key").is_some(), is_known, "{fingerprint}");
    }
}
