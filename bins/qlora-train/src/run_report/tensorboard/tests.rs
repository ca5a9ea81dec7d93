use super::*;
use std::collections::BTreeMap;

#[test]
fn the_crc_is_that_of_its_specification() {
    // RFC 3720, B.4
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn messages_are_in_the_wire_format() {
    assert_eq!(message(&[(2, Field::Varint(300))]), [0x10, 0xac, 0x02]);
    assert_eq!(
        message(&[(1, Field::Bytes(b"ab")), (2, Field::Float(1.0))]),
        [0x0a, 2, b'a', b'b', 0x15, 0, 0, 0x80, 0x3f]
    );
    assert_eq!(message(&[(1, Field::Double(1.0))]), [9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
}

#[test]
fn a_file_is_whole_records_and_every_figure_has_its_tag() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = EventFile::create(&Dir::create(&dir.path().join("runs")).unwrap(), 0).unwrap();
    let tasks = BTreeMap::from([("sum".to_owned(), 0.25)]);
    let entry = LogEntry {
        loss: Some(1.5),
        eval_loss: Some(0.5),
        eval_task_losses: Some(tasks),
        learning_rate: Some(1e-4),
        learning_rate_b: Some(1e-4),
        ..LogEntry::new(3, 0.5)
    };
    file.log(&entry).unwrap();
    file.log(&LogEntry::new(4, 0.6)).unwrap();
    assert!(is_own(file.path().file_name().unwrap().to_str().unwrap()));
    let bytes = std::fs::read(file.path()).unwrap();
    let (mut rest, mut records) = (&bytes[..], 0);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
        let data = &rest[12..12 + length];
        assert_eq!(rest[12 + length..16 + length], masked_crc(data).to_le_bytes());
        rest = &rest[16 + length..];
        records += 1;
    }
    assert_eq!(records, 3, "the version, the start and one entry: an entry without figures is none");
    let text = String::from_utf8_lossy(&bytes);
    for tag in ["brain.Event:2", "train/loss", "train/epoch", "train/learning_rate", "eval/loss", "eval/loss/task/sum"]
    {
        assert!(text.contains(tag), "{tag}");
    }
    assert!(!text.contains("learning_rate_b"), "one rate is told once");
}

#[test]
fn files_of_others_are_not_ours() {
    assert!(!is_own("events.out.tfevents.1.host.2.0") && !is_own("notes.qlora-train"));
}
