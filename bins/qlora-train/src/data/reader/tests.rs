use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;

const ROWS: usize = 3;

fn write_parquet(path: &Path) {
    let schema = Arc::new(parse_message_type("message rows { required binary text (UTF8); }").unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&vec![ByteArray::from("a b"); ROWS], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_that_changes_meanwhile_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.parquet");
    let open = || OpenOptions::new().append(true).open(&path).unwrap();
    let longer = || open().write_all(b"more").unwrap();
    let shorter = || open().set_len(8).unwrap();
    let as_long = || open().set_modified(SystemTime::now() + Duration::from_secs(2)).unwrap();
    for (change, refused) in [(&(|| ()) as &dyn Fn(), false), (&longer, true), (&shorter, true), (&as_long, true)] {
        write_parquet(&path);
        let mut rows = 0;
        let read = read_rows(&path, &Columns::default(), &mut |_, number, row| {
            assert!(row.is_ok(), "{row:?}");
            if number == 1 {
                change();
            }
            rows = number;
            Ok(())
        });
        match read {
            Ok(hash) => assert!(!refused && rows == ROWS && hash == hash_of(&File::open(&path).unwrap()).unwrap()),
            Err(error) => {
                let said = error.to_string();
                assert!(refused && said.contains("rows.parquet: was written to while it was read"), "{said}");
            }
        }
    }
}
