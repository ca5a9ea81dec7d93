use super::super::{Gguf, Value, encode};
use super::*;

#[test]
fn what_is_written_is_what_the_reader_reads() {
    let info = |name: &str, shape: &[usize], kind| TensorInfo { name: name.to_owned(), shape: shape.to_vec(), kind };
    let tensors = vec![info("one", &[3], GgmlType::F32), info("two", &[2, 32], GgmlType::Q8_0)];
    let texts = ["", "a", "ä b"].map(str::to_owned).to_vec();
    let entries = [
        ("u", Entry::U32(7)),
        ("f", Entry::F32(0.5)),
        ("b", Entry::Bool(true)),
        ("t", Entry::Text("text".to_owned())),
        ("ts", Entry::Texts(texts)),
        ("i", Entry::I32s(vec![-1, 3])),
        ("fs", Entry::F32s(vec![-1.0, 0.25])),
    ];
    let header = Header { entries: entries.map(|(key, entry)| (key.to_owned(), entry)).to_vec(), tensors };
    let mut bytes = header.to_bytes().unwrap();
    let before = bytes.len();
    let data = [vec![1.0, -2.0, 3.0], (0..64).map(|i| i as f32 - 20.0).collect()];
    for (tensor, values) in header.tensors.iter().zip(&data) {
        let start = bytes.len();
        encode(tensor.kind, values, &mut bytes);
        assert_eq!(bytes.len() - start, tensor.bytes().unwrap());
        bytes.resize(bytes.len() + padding(bytes.len() - start), 0);
    }
    assert_eq!((bytes.len() - before) as u64, header.data_bytes().unwrap());
    let read = Gguf::parse(&bytes).unwrap();
    assert_eq!((read.integer("u").unwrap(), read.number("f").unwrap()), (7, 0.5));
    assert_eq!((&read.metadata["b"], read.string("t").unwrap()), (&Value::Bool(true), "text"));
    assert_eq!((read.strings("ts").unwrap(), read.integers("i").unwrap()), (vec!["", "a", "ä b"], vec![-1, 3]));
    assert_eq!(read.metadata["fs"], Value::Array(vec![Value::Float32(-1.0), Value::Float32(0.25)]));
    let (one, two) = (&read.tensors["one"], &read.tensors["two"]);
    assert_eq!((one.kind.to_f32(one.data), &one.shape), (data[0].clone(), &vec![3]));
    assert_eq!((two.kind, two.shape.as_slice()), (GgmlType::Q8_0, &[2, 32][..]));
    assert_eq!(two.kind.to_f32(two.data)[63], f32::from(half::f16::from_f32(43.0 / 127.0)) * 127.0);
}

#[test]
fn rows_that_are_no_whole_blocks_and_long_names_are_refused() {
    let of = |name: String, shape: Vec<usize>, kind| {
        let header = Header { entries: Vec::new(), tensors: vec![TensorInfo { name, shape, kind }] };
        header.to_bytes().map(drop).unwrap_err().to_string()
    };
    assert!(of("x".to_owned(), vec![4, 33], GgmlType::Q8_0).contains("rows of 33 values"));
    assert!(of("x".repeat(64), vec![4], GgmlType::F32).contains("longer than 63"));
}
