use super::*;
use serde_json::json;

fn encoded(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let of = |group: &[u8]| {
        let bits = group.iter().fold(0u32, |bits, &byte| (bits << 8) | u32::from(byte)) << (8 * (3 - group.len()));
        let letters = (0..=group.len()).map(|at| char::from(LETTERS[((bits >> (18 - 6 * at)) & 63) as usize]));
        letters.chain("=".repeat(3 - group.len()).chars()).collect::<String>()
    };
    bytes.chunks(3).map(of).collect()
}

/// A table of no characters, which says that it has `size` bytes, and forms.
fn table(size: u32, forms: &[u8]) -> Value {
    let bytes = [&size.to_le_bytes()[..], &[0; 8], forms].concat();
    json!({"type": "Sequence", "normalizers": [{"type": "NFC"},
        {"type": "Precompiled", "precompiled_charsmap": encoded(&bytes)}]})
}

#[test]
fn base64_is_read_as_it_is_written() {
    for length in 0..40 {
        let bytes: Vec<u8> = (0..length).map(|at: u8| at.wrapping_mul(97)).collect();
        assert_eq!(base64(&encoded(&bytes)), Some(bytes));
    }
    assert_eq!(base64("a b"), None);
}

#[test]
fn tables_are_looked_at_before_they_are_used() {
    assert_eq!(check_normalizer(&table(8, &[&[b'a'; MAX_FORM_BYTES][..], &[0, b'b']].concat())), Ok(()));
    let why = check_normalizer(&table(8, &[b'a'; MAX_FORM_BYTES + 1])).unwrap_err();
    assert!(why.contains("129 bytes in the place of a character"), "{why}");
    for size in [13, 1 << 20, u32::MAX] {
        let why = check_normalizer(&table(size, b"abcd")).unwrap_err();
        assert!(why.contains("its size does not match its content"), "{size}: {why}");
    }
    assert!(check_normalizer(&json!({"precompiled_charsmap": ""})).is_err());
    assert_eq!(check_normalizer(&json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, null]})), Ok(()));
}

#[test]
fn decoders_that_multiply_are_refused() {
    let decoder = |parts: Value| -> Result<(), String> {
        check_decoder(&serde_json::from_value(json!({"type": "Sequence", "decoders": parts})).unwrap())
    };
    let replace = |by: &str| json!({"type": "Replace", "pattern": {"String": "▁"}, "content": by});
    assert_eq!(decoder(json!([replace(" "), {"type": "ByteFallback"}, {"type": "Fuse"}])), Ok(()));
    assert_eq!(decoder(json!([replace("twelve bytes")])), Ok(()));
    assert!(decoder(json!([replace(&"x".repeat(200))])).unwrap_err().contains("by up to 67 times as much"));
    // Each makes two of one.
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    assert_eq!(decoder(json!([double, double, double])), Ok(()));
    assert!(decoder(json!(vec![double; 70])).is_err());
    let each = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(64)});
    assert!(decoder(json!([each])).is_err());
}

#[test]
fn long_tokens_are_refused() {
    let of = |length: usize| check_tokens(["a".to_owned(), "b".repeat(length)].iter());
    assert_eq!(of(MAX_TOKEN_BYTES), Ok(()));
    assert!(of(MAX_TOKEN_BYTES + 1).unwrap_err().contains("a token has 4097 bytes"));
}
