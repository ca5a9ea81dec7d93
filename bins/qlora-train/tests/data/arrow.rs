//! Rows of Arrow files and streams, written by the tests.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int64Array, LargeStringArray, ListArray,
    NullArray, RecordBatch, StringArray, StringViewArray, StructArray, TimestampSecondArray,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_ipc::CompressionType;
use arrow_ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use arrow_schema::{Field, Schema};
use proptest::prelude::*;
use qlora_train::data::{DataFiles, RowKind, Unit, load};
use serde_json::json;

use trainer_lab::fixture::*;

fn list(values: ArrayRef, lengths: &[usize], nulls: Option<Vec<bool>>) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(ListArray::new(field, offsets, values, nulls.map(NullBuffer::from)))
}

fn text(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, array)| array).collect()).unwrap()
}

/// A conversation, then a tokenized row, with columns of no meaning.
fn rows() -> RecordBatch {
    let turn = |name: &str, values: ArrayRef| (Arc::new(Field::new(name, values.data_type().clone(), true)), values);
    let turns: ArrayRef = Arc::new(StructArray::from(vec![
        turn("role", text(&[Some("user"), Some("assistant")])),
        turn("content", text(&[Some("hello"), Some("w")])),
        turn("weight", Arc::new(Float64Array::from(vec![None, Some(1.0)]))),
    ]));
    batch(vec![
        ("messages", list(turns, &[2, 0], Some(vec![true, false]))),
        ("input_ids", list(Arc::new(Int64Array::from(vec![5, 6, 7])), &[0, 3], Some(vec![false, true]))),
        ("thumbnail", Arc::new(BinaryArray::from(vec![&b"\xFF"[..], b"\xFE"]))),
        ("task", text(&[Some("add"), None])),
        ("when", Arc::new(TimestampSecondArray::from(vec![1, 2]))),
    ])
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Stream,
    File,
}

fn write(form: Form, compression: Option<CompressionType>, batches: &[RecordBatch]) -> Vec<u8> {
    let mut out = Vec::new();
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let schema = batches[0].schema();
    match form {
        Form::Stream => {
            let mut writer = StreamWriter::try_new_with_options(&mut out, &schema, options).unwrap();
            batches.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.finish().unwrap();
        }
        Form::File => {
            let mut writer = FileWriter::try_new_with_options(&mut out, &schema, options).unwrap();
            batches.iter().for_each(|batch| writer.write(batch).unwrap());
            writer.finish().unwrap();
        }
    }
    out
}

const FORMS: [Form; 2] = [Form::Stream, Form::File];

#[test]
fn every_batch_of_a_stream_and_of_a_file_is_read() {
    let tokenizer = chat_tokenizer(CHATML);
    let expected = tokenizer.encode_chat(&turns(&[("user", "hello"), ("assistant", "w")])).unwrap();
    for form in FORMS {
        for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
            let data = load_one(write(form, compression, &[rows(), rows()]), Some(&tokenizer)).unwrap();
            assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3, 4], "{form:?}");
            assert_eq!((&data.rows[2].input_ids, &data.rows[2].labels), (&expected.input_ids, &expected.labels));
            assert_eq!(data.rows[3].input_ids, [5, 6, 7]);
            assert_eq!(data.rows[0].task.as_deref(), Some("add"));
            assert_eq!(data.report.files[0].unit, Unit::Row);
            assert_eq!(data.report.files[0].kinds, [(RowKind::Messages, 2), (RowKind::Tokenized, 2)]);
        }
    }
}

#[test]
fn texts_of_every_layout_are_the_same_text() {
    let dictionary: DictionaryArray<Int32Type> = ["b", "a"].into_iter().collect();
    let layouts: [ArrayRef; 4] = [
        text(&[Some("b"), Some("a")]),
        Arc::new(LargeStringArray::from(vec!["b", "a"])),
        Arc::new(StringViewArray::from(vec!["b", "a"])),
        Arc::new(dictionary),
    ];
    let tokenizer = chat_tokenizer(CHATML);
    for layout in layouts {
        let kind = layout.data_type().clone();
        for form in FORMS {
            let data = load_one(write(form, None, &[batch(vec![("text", layout.clone())])]), Some(&tokenizer)).unwrap();
            let texts: Vec<u32> = data.rows.iter().map(|row| row.input_ids[1]).collect();
            assert_eq!(texts, [98, 97], "{kind}");
        }
    }
}

#[test]
fn columns_that_look_like_flags_are_warned_of() {
    let tokenizer = chat_tokenizer(CHATML);
    let truths = DictionaryArray::<Int32Type>::from_iter(["true", "false"]);
    let flags: [(&str, ArrayRef); 6] = [
        ("is_masked", text(&[Some("true"), Some("false")])),
        ("no_loss", Arc::new(truths)),
        ("masked", Arc::new(BooleanArray::from(vec![true, false]))),
        ("learn", Arc::new(Int64Array::from(vec![1, 0]))),
        ("lossScale", Arc::new(Float64Array::from(vec![0.5, 1.0]))),
        ("Train", Arc::new(BooleanArray::from(vec![false, true]))),
    ];
    let others: [(&str, ArrayRef); 5] = [
        ("masked", text(&[Some("a word"), None])),
        ("mask", Arc::new(BinaryArray::from(vec![&b"\xFF"[..], b"\xFE"]))),
        ("ignored", Arc::new(TimestampSecondArray::from(vec![1, 2]))),
        ("thumbnail", Arc::new(BinaryArray::from(vec![&b"\xFF"[..], b"\xFE"]))),
        ("id", Arc::new(Int64Array::from(vec![7, 8]))),
    ];
    let texts = || ("text", text(&[Some("a"), Some("b")]));
    let remarks = |column: (&str, ArrayRef)| {
        let bytes = write(Form::File, None, &[batch(vec![texts(), column])]);
        load_one(bytes, Some(&tokenizer)).unwrap().report.files[0].notes.lines("row")
    };
    for (name, values) in flags {
        let said = remarks((name, values));
        // The other value says that the row is learned, as it is.
        assert_eq!(said[0], format!("not used: `{name}` of rows"));
        assert_says(&said[1], &["warning: in 1 row", &format!("`{name}`"), "nothing reads"]);
    }
    let said = remarks(("mask", list(Arc::new(Int64Array::from(vec![0, 1])), &[0, 2], None)));
    assert_eq!(said.len(), 1, "{said:?}");
    assert_says(&said[0], &["warning: in 1 row (row 2) the row has the key `mask`"]);
    let said = remarks(("Tools", text(&[Some("x"), None])));
    assert_says(&said[0], &["warning: in 1 row (row 1) the row has the key `Tools`", "`tools` is read"]);
    // Other columns are listed, unless they are empty.
    for other in others {
        let name = other.0;
        assert_eq!(remarks(other), [format!("not used: `{name}` of rows")]);
    }
    for nothing in [text(&[None, None]), Arc::new(NullArray::new(2)) as ArrayRef] {
        assert_eq!(remarks(("id", nothing)), [""; 0]);
    }
}

#[test]
fn a_table_of_the_turns_of_chat_trees_is_refused() {
    let rows = batch(vec![
        ("message_id", text(&[Some("m"), Some("n")])),
        ("parent_id", text(&[None, Some("m")])),
        ("text", text(&[Some("Hi"), Some("Hello")])),
        ("role", text(&[Some("prompter"), Some("assistant")])),
    ]);
    let why = refusal(load_one(write(Form::File, None, &[rows]), Some(&chat_tokenizer(CHATML))));
    assert_says(&why, &["row 1", "`role` (prompter)", "one turn of a conversation", "`parent_id`"]);
}

#[test]
fn wrong_rows_and_columns_are_named() {
    let tokenizer = chat_tokenizer(CHATML);
    let refused = |column: (&str, ArrayRef), words: &[&str]| {
        for form in FORMS {
            let message = refusal(load_one(write(form, None, &[batch(vec![column.clone()])]), Some(&tokenizer)));
            assert_says(&message, &["rows.jsonl: "]);
            assert_says(&message, words);
        }
    };
    refused(("text", text(&[Some("a"), None])), &["row 2: ", "`text` is null"]);
    refused(("text", Arc::new(NullArray::new(3))), &["row 1: ", "`text` is null"]);
    refused(("text", Arc::new(Int64Array::from(vec![3]))), &["row 1: ", "`text` is the number 3"]);
    refused(("text", Arc::new(TimestampSecondArray::from(vec![3]))), &["row 1: `text` has the type", "expected text"]);
    refused(("question", text(&[Some("a")])), &["the columns `question`", "supported are"]);
    refused(("text", text(&[])), &["no row found"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let tokenizer = chat_tokenizer(CHATML);
    for form in FORMS {
        let whole = write(form, None, &[rows(), rows()]);
        for length in (6..whole.len()).step_by(5) {
            let message = refusal(load_one(&whole[..length], Some(&tokenizer)));
            assert_says(&message, &["cannot read as Arrow", "cut off or damaged"]);
        }
    }
}

/// Lengths are only believed as far as there are bytes.
#[test]
fn a_few_bytes_that_claim_to_be_many_are_refused() {
    let tokenizer = chat_tokenizer(CHATML);
    let compressed =
        write(Form::Stream, Some(CompressionType::ZSTD), &[batch(vec![("text", text(&[Some(&"a".repeat(999))]))])]);
    // The length that a compressed buffer says it becomes.
    let claim = compressed.windows(8).rposition(|bytes| bytes == &999i64.to_le_bytes()[..]).unwrap();
    let mut bomb = compressed.clone();
    bomb[claim..claim + 8].copy_from_slice(&(1i64 << 60).to_le_bytes());
    assert_says(&refusal(load_one(bomb, Some(&tokenizer))), &["cannot read as Arrow", "more than 2 GiB"]);
    let mut header = write(Form::Stream, None, &[rows()]);
    header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_says(&refusal(load_one(header, Some(&tokenizer))), &["cannot read as Arrow"]);
    // One text of 48 MiB.
    let long = text(&[Some(&"a".repeat(48 << 20))]);
    let bytes = write(Form::Stream, Some(CompressionType::ZSTD), &[batch(vec![("text", long)])]);
    assert!(bytes.len() < 100_000);
    assert_says(&refusal(load_one(bytes, Some(&tokenizer))), &["becomes more than", "200 times its size"]);
}

#[test]
fn a_folder_of_datasets_is_what_its_state_says() {
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("train");
    std::fs::create_dir(&part).unwrap();
    let names = ["data-00001-of-00002.arrow", "data-00000-of-00002.arrow", "cache-0123.arrow"];
    let one = |text_: &str| write(Form::Stream, None, &[batch(vec![("text", text(&[Some(text_)]))])]);
    names.iter().zip(["b", "a", "old"]).for_each(|(name, text)| std::fs::write(part.join(name), one(text)).unwrap());
    std::fs::write(part.join("dataset_info.json"), "{}").unwrap();
    let state = |files: serde_json::Value| write_json(&part, "state.json", &files);
    let listed = json!([{"filename": names[1]}, {"filename": names[0]}]);
    for given in [dir.path(), part.as_path()] {
        state(json!({"_data_files": listed, "_fingerprint": "x", "_indices_data_files": null}));
        let found = DataFiles::find(&[given.to_owned()]).unwrap();
        assert_eq!(found.training, [part.join(names[1]), part.join(names[0])]);
        let data = load(&found.training, Some(&chat_tokenizer(CHATML)), &options()).unwrap();
        assert_eq!(data.rows.iter().map(|row| row.input_ids[1]).collect::<Vec<_>>(), [97, 98]);
        for (wrong, words) in [
            (json!({"_data_files": [{"filename": "data-00009.arrow"}]}), "is not there"),
            (json!({"_data_files": []}), "expected `_data_files`"),
            (json!({"_data_files": listed, "_indices_data_files": [{"filename": "i"}]}), "flatten_indices"),
        ] {
            state(wrong);
            assert_says(&refusal(DataFiles::find(&[given.to_owned()])), &["state.json", words]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Arrow has no checksum, so a changed file may be read as other rows; it never panics.
    #[test]
    fn damaged_bytes_are_read_or_refused(
        stream in any::<bool>(),
        compressed in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let form = if stream { Form::Stream } else { Form::File };
        let mut bytes = write(form, compressed.then_some(CompressionType::ZSTD), &[rows()]);
        for (at, value) in changes {
            let at = 8 + at.index(bytes.len() - 8);
            bytes[at] = value;
        }
        if let Err(error) = load_one(bytes, Some(&chat_tokenizer(CHATML))) {
            prop_assert_eq!(error.exit_status(), 2);
        }
    }
}
