use std::io::Cursor;

use super::*;

fn footer(bytes: &[u8]) -> Result<()> {
    let length = (bytes.len() as u32).to_le_bytes();
    check_footer(&mut Cursor::new([b"PAR1", bytes, &length, b"PAR1"].concat()))
}

#[test]
fn claims_beyond_the_bytes_are_refused() {
    // Field 1: a number; field 10, which the format lacks: a list of two numbers.
    assert_eq!(footer(&[0x15, 2, 0x99, 0x25, 2, 4, 0]), Ok(()));
    let cut = Err("a header that is cut off".to_owned());
    assert_eq!(footer(&[0x15, 2]), cut);
    // Lists of two billion numbers, structs and truth values; a map of as many; a text longer than all.
    let many = [0xFF, 0xFF, 0xFF, 0xFF, 0x07];
    assert_eq!(footer(&[&[0xA9, 0xF5][..], &many, &[0]].concat()), cut);
    assert_eq!(footer(&[&[0xA9, 0xFC][..], &many, &[0]].concat()), cut);
    assert!(footer(&[&[0xA9, 0xF1][..], &many, &[0]].concat()).unwrap_err().contains("type 1"));
    assert!(footer(&[&[0xAB][..], &many, &[0x11, 0]].concat()).unwrap_err().contains("type 11"));
    assert_eq!(footer(&[&[0xA8][..], &many, &[0]].concat()), cut);
    assert!(footer(&[0xAC; 40]).unwrap_err().contains("nested too deeply"));
    assert!(footer(&[0xA9; 40]).unwrap_err().contains("nested too deeply"));
    assert!(check_footer(&mut Cursor::new(b"\xFF\xFF\0\0PAR1")).unwrap_err().contains("longer than the file"));
}

#[test]
fn pages_say_what_they_become() {
    // A dictionary of 100 bytes in 2, and a data page of 6 values that is 3 bytes of 50.
    let dictionary = [0x15, 4, 0x15, 200, 1, 0x15, 4, 0x4C, 0x15, 8, 0, 0, 7, 7];
    let data = [0x15, 0, 0x15, 100, 0x15, 6, 0x2C, 0x15, 12, 0x15, 0, 0, 0, 1, 2, 3];
    let both = [&dictionary[..], &data].concat();
    let claims = |bytes: &[u8]| of_pages(&mut Cursor::new(bytes), 0..bytes.len() as u64);
    assert_eq!(claims(&both), Ok(Claims { bytes: 150, values: 6 }));
    assert!(claims(&both[..both.len() - 1]).unwrap_err().contains("ends behind its column"));
    assert!(claims(&[0x15, 0, 0x15, 1, 0x15, 0, 0]).unwrap_err().contains("less than nothing"));
}

/// The library would read these bytes as another type, and all that follows as something else.
#[test]
fn a_field_has_the_type_of_the_format() {
    let refused = |found: Result<()>, field: &str| {
        assert!(found.clone().unwrap_err().contains(&format!("field {field} has the type")), "{found:?}");
    };
    // A version that is a text, rows as a list of numbers, a name of a column that is a number, a type with a field in
    // the place of an empty struct.
    refused(footer(&[0x18, 1, 2, 0]), "[1]");
    refused(footer(&[0x49, 0x15, 2, 0]), "[4, -1]");
    refused(footer(&[0x29, 0x1C, 0x45, 2, 0, 0]), "[2, -1, 4]");
    refused(footer(&[0x29, 0x1C, 0xAC, 0x15, 2, 0, 0, 0]), "[2, -1, 10, 1]");
    refused(footer(&[0x79, 0x1C, 0x38, 1, 2, 0, 0]), "[7, -1, 3]");
    let page = |bytes: &[u8]| of_pages(&mut Cursor::new(bytes), 0..bytes.len() as u64).map(|_| ());
    // An index page that is a list, a truth value for the number of values, a number for one that is sorted.
    refused(page(&[0x69, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "[6]");
    refused(page(&[0x5C, 0x11, 0, 0]), "[5, 1]");
    refused(page(&[0x7C, 0x35, 2, 0, 0]), "[7, 3]");
}
