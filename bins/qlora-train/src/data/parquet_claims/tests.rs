use std::io::Cursor;

use super::*;

fn footer(bytes: &[u8]) -> Result<()> {
    let length = (bytes.len() as u32).to_le_bytes();
    check_footer(&mut Cursor::new([b"PAR1", bytes, &length, b"PAR1"].concat()))
}

#[test]
fn claims_beyond_the_bytes_are_refused() {
    // Field 1: a number; field 2: a list of two numbers.
    assert_eq!(footer(&[0x15, 2, 0x19, 0x25, 2, 4, 0]), Ok(()));
    let cut = Err("a header that is cut off".to_owned());
    assert_eq!(footer(&[0x15, 2]), cut);
    // Lists of two billion numbers, structs and truth values; a map of as many; a text longer than all.
    let many = [0xFF, 0xFF, 0xFF, 0xFF, 0x07];
    assert_eq!(footer(&[&[0x19, 0xF5][..], &many, &[0]].concat()), cut);
    assert_eq!(footer(&[&[0x19, 0xFC][..], &many, &[0]].concat()), cut);
    assert!(footer(&[&[0x19, 0xF1][..], &many, &[0]].concat()).unwrap_err().contains("type 1"));
    assert!(footer(&[&[0x1B][..], &many, &[0x11, 0]].concat()).unwrap_err().contains("type 11"));
    assert_eq!(footer(&[&[0x18][..], &many, &[0]].concat()), cut);
    assert!(footer(&[0x1C; 40]).unwrap_err().contains("nested too deeply"));
    assert!(footer(&[0x19; 40]).unwrap_err().contains("nested too deeply"));
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
