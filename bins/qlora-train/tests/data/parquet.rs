//! Rows of Parquet files, written by the tests.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use qlora_train::data::{RowKind, Unit, load};
use tempfile::TempDir;

use trainer_lab::fixture::*;

/// A column's values with their definition and repetition levels.
enum Column {
    Text(Vec<&'static str>, Vec<i16>, Vec<i16>),
    Bytes(Vec<&'static [u8]>, Vec<i16>, Vec<i16>),
    Integers(Vec<i64>, Vec<i16>, Vec<i16>),
}

/// One row group with these columns, in the order of the schema's leaves.
fn write(path: &Path, schema: &str, groups: &[Vec<Column>], compression: Compression) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
    for columns in groups {
        let mut group = writer.next_row_group().unwrap();
        for column in columns {
            let mut out = group.next_column().unwrap().unwrap();
            let bytes = |text: &[u8]| ByteArray::from(text.to_vec());
            match (out.untyped(), column) {
                (ColumnWriter::ByteArrayColumnWriter(out), Column::Text(values, def, rep)) => {
                    let values: Vec<_> = values.iter().map(|text| bytes(text.as_bytes())).collect();
                    out.write_batch(&values, Some(def), Some(rep)).unwrap();
                }
                (ColumnWriter::ByteArrayColumnWriter(out), Column::Bytes(values, def, rep)) => {
                    let values: Vec<_> = values.iter().map(|text| bytes(text)).collect();
                    out.write_batch(&values, Some(def), Some(rep)).unwrap();
                }
                (ColumnWriter::Int64ColumnWriter(out), Column::Integers(values, def, rep)) => {
                    out.write_batch(values, Some(def), Some(rep)).unwrap();
                }
                _ => panic!("a column of another type"),
            }
            out.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// A conversation, then a tokenized row, with a column of no meaning that is not even text.
const SCHEMA: &str = "message rows {
    optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); optional int64 weight; } } }
    optional group input_ids (LIST) { repeated group list { optional int64 element; } }
    optional binary thumbnail;
    optional binary task (UTF8);
}";

fn group() -> Vec<Column> {
    vec![
        Column::Text(vec!["user", "assistant"], vec![4, 4, 0], vec![0, 1, 0]),
        Column::Text(vec!["hello", "w"], vec![4, 4, 0], vec![0, 1, 0]),
        Column::Integers(vec![1], vec![3, 4, 0], vec![0, 1, 0]),
        Column::Integers(vec![5, 6, 7], vec![0, 3, 3, 3], vec![0, 0, 1, 1]),
        Column::Bytes(vec![&[0xFF, 0xFE]], vec![1, 0], vec![0, 0]),
        Column::Text(vec!["add"], vec![1, 0], vec![0, 0]),
    ]
}

fn table(compression: Compression) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    // The name does not matter.
    let path = dir.path().join("rows.jsonl");
    write(&path, SCHEMA, &[group(), group()], compression);
    (dir, path)
}

#[test]
fn conversations_and_token_ids_are_read_from_every_row_group() {
    let tokenizer = chat_tokenizer(CHATML);
    let expected = tokenizer.encode_chat(&turns(&[("user", "hello"), ("assistant", "w")])).unwrap();
    let (gzip, zstd) = (Compression::GZIP(Default::default()), Compression::ZSTD(Default::default()));
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, gzip, Compression::LZ4_RAW, zstd] {
        let (_dir, path) = table(compression);
        let data = load(std::slice::from_ref(&path), Some(&tokenizer), &options()).unwrap();
        assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!((&data.rows[2].input_ids, &data.rows[2].labels), (&expected.input_ids, &expected.labels));
        assert_eq!(data.rows[3].input_ids, [5, 6, 7]);
        let tasks: Vec<Option<&str>> = data.rows.iter().map(|row| row.task.as_deref()).collect();
        assert_eq!(tasks, [Some("add"), None, Some("add"), None]);
        assert_eq!(data.report.files[0].unit, Unit::Row);
        assert_eq!(data.report.files[0].kinds, [(RowKind::Messages, 2), (RowKind::Tokenized, 2)]);
    }
}

#[test]
fn columns_that_look_like_flags_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let tokenizer = chat_tokenizer(CHATML);
    let remarks = |flag: &str, column: Column| {
        let schema = format!("message rows {{ required binary text (UTF8); {flag} }}");
        let texts = Column::Text(vec!["a", "b"], vec![0, 0], vec![0, 0]);
        write(&path, &schema, &[vec![texts, column]], Compression::UNCOMPRESSED);
        let data = load(std::slice::from_ref(&path), Some(&tokenizer), &options()).unwrap();
        data.report.files[0].notes.lines("row")
    };
    let numbers = |values: Vec<i64>| Column::Integers(values, vec![1, 1], vec![0, 0]);
    let texts = |values: Vec<&'static str>| Column::Text(values, vec![1, 1], vec![0, 0]);
    let list = "(LIST) { repeated group list { optional int64 element; } }";
    for (name, schema, column) in [
        ("masked", "optional int64 masked;".to_owned(), numbers(vec![0, 1])),
        ("learn", "optional int64 learn;".to_owned(), numbers(vec![1, 0])),
        ("Train", "optional int64 Train;".to_owned(), numbers(vec![0, 1])),
        // Small numbers have a type of their own.
        ("ignore", "optional int64 ignore (UINT_64);".to_owned(), numbers(vec![0, 1])),
        ("isMasked", "optional binary isMasked (UTF8);".to_owned(), texts(vec!["True", "False"])),
    ] {
        let said = remarks(&schema, column);
        // The other value says that the row is learned, as it is.
        assert_eq!(said[0], format!("not used: `{name}` of rows"));
        assert_says(&said[1], &["warning: in 1 row", &format!("`{name}`"), "nothing reads"]);
    }
    let tokens = Column::Integers(vec![0, 1], vec![3, 3, 0], vec![0, 1, 0]);
    let said = remarks(&format!("optional group mask {list}"), tokens);
    assert_eq!(said.len(), 1, "{said:?}");
    assert_says(&said[0], &["warning: in 1 row (row 1) the row has the key `mask`"]);
    // A known key in other letters.
    let said = remarks("optional binary Tools (UTF8);", Column::Text(vec!["x"], vec![0, 1], vec![0, 0]));
    assert_says(&said[0], &["warning: in 1 row (row 2) the row has the key `Tools`", "`tools` is read"]);
    // Other columns are not read, but listed, unless they are empty.
    let bytes = || Column::Bytes(vec![&[0xFF], &[0xFE]], vec![1, 1], vec![0, 0]);
    for (name, schema, column) in [
        ("ignored", "optional int64 ignored (TIMESTAMP_MILLIS);", numbers(vec![1, 2])),
        ("mask", "optional binary mask;", bytes()),
        ("thumbnail", "optional binary thumbnail;", bytes()),
        ("id", "optional binary id (UTF8);", texts(vec!["a", "b"])),
    ] {
        assert_eq!(remarks(schema, column), [format!("not used: `{name}` of rows")]);
    }
    let nothing = Column::Text(Vec::new(), vec![0, 0], vec![0, 0]);
    assert_eq!(remarks("optional binary id (UTF8);", nothing), [""; 0]);
}

#[test]
fn wrong_rows_are_refused_by_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let tokenizer = chat_tokenizer(CHATML);
    let refused = |schema: &str, column: Column, parts: &[&str]| {
        write(&path, schema, &[vec![column]], Compression::UNCOMPRESSED);
        let message = refusal(load(std::slice::from_ref(&path), Some(&tokenizer), &options()));
        assert_says(&message, &["rows.parquet: "]);
        assert_says(&message, parts);
    };
    let text = "message rows { optional binary text (UTF8); }";
    refused(text, Column::Text(vec!["a"], vec![1, 0], vec![0, 0]), &["row 2: ", "`text` is null"]);
    refused(text, Column::Text(vec![], vec![], vec![]), &["no row found"]);
    let bytes = "message rows { optional binary text; }";
    refused(
        bytes,
        Column::Bytes(vec![b"a", b"b\xFF"], vec![1, 1], vec![0, 0]),
        &["row 2: ", "`text` is not UTF-8 (byte 2)"],
    );
    let number = "message rows { optional int64 text; }";
    refused(number, Column::Integers(vec![3], vec![1], vec![0]), &["row 1: ", "`text` is the number 3"]);
    let other = "message rows { optional binary question (UTF8); }";
    refused(other, Column::Text(vec!["a"], vec![1], vec![0]), &["the columns `question`", "supported are"]);
    let date = "message rows { optional int64 text (TIMESTAMP_MILLIS); }";
    refused(date, Column::Integers(vec![3], vec![1], vec![0]), &["row 1: `text` is 1970-01-01", "expected text"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let (_dir, path) = table(Compression::SNAPPY);
    let (whole, tokenizer) = (std::fs::read(&path).unwrap(), chat_tokenizer(CHATML));
    for length in (4..whole.len()).step_by(7) {
        let message = refusal(load_one(&whole[..length], Some(&tokenizer)));
        assert_says(&message, &["Parquet", "damaged"]);
    }
}

/// A page of one value many times over takes next to nothing.
#[test]
fn a_few_bytes_that_stand_for_many_values_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let tokenizer = chat_tokenizer(CHATML);
    let refused = |schema: &str, columns: Vec<Column>, words: &[&str]| {
        write(&path, schema, &[columns], Compression::ZSTD(Default::default()));
        assert!(std::fs::metadata(&path).unwrap().len() < 200_000, "{}", std::fs::metadata(&path).unwrap().len());
        let message = refusal(load(std::slice::from_ref(&path), Some(&tokenizer), &options()));
        assert_says(&message, words);
    };
    // One row of six million token ids, and ten rows of which the first has them all.
    let ids = "message rows { optional group input_ids (LIST) { repeated group list { optional int64 element; } } }";
    let many = 6_000_000;
    let levels = |rows: usize| (0..many).map(|at| i16::from(at != 0 && at < many - rows + 1)).collect::<Vec<i16>>();
    refused(ids, vec![Column::Integers(vec![7; many], vec![3; many], levels(1))], &["values, more than the"]);
    refused(ids, vec![Column::Integers(vec![7; many], vec![3; many], levels(10))], &["decode to 6000000 values"]);
    // One text of 48 MiB.
    let text = "message rows { optional binary text (UTF8); }";
    let long: &'static str = Box::leak("a".repeat(48 << 20).into_boxed_str());
    refused(text, vec![Column::Text(vec![long], vec![1], vec![0])], &["rows.parquet", "becomes more than"]);
}

proptest! {
    /// Parquet has no checksum over all of its bytes, so a changed file may be read as other rows; it never panics.
    #[test]
    fn damaged_bytes_are_read_or_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let (_dir, path) = table(Compression::UNCOMPRESSED);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in changes {
            let at = 4 + at.index(bytes.len() - 4);
            bytes[at] = value;
        }
        if let Err(error) = load_one(bytes, Some(&chat_tokenizer(CHATML))) {
            prop_assert_eq!(error.exit_status(), 2);
        }
    }
}
