//! The rules by which the C interface grows: shorter and longer structs, fields called reserved, arrays of structs.

use super::{M, N, Valid, spoiled};
use crate::sys::{self, QK_ERROR_RESERVED, QK_ERROR_STRUCT_SIZE, QK_OK};
use half::bf16;
use std::ptr::null_mut;

/// A struct as a caller of a later version has it: fields that this library does not know follow.
#[repr(C)]
struct Later<T> {
    known: T,
    unknown: [u64; 4],
}

#[test]
fn longer_structs_are_taken_for_what_is_known() {
    let mut valid = Valid::new();
    let grown = |size: usize| size as u32 + 32;
    let mut nf4 = Later { known: valid.nf4, unknown: [u64::MAX; 4] };
    nf4.known.struct_size = grown(size_of::<sys::qk_nf4>());
    let mut lora = Later { known: valid.lora, unknown: [u64::MAX; 4] };
    lora.known.struct_size = grown(size_of::<sys::qk_lora>());
    valid.y = valid.device.upload(&[bf16::ONE; M * N + 8]).unwrap();
    valid.segment.y = valid.y.view_mut().address().cast();
    let mut segment = Later { known: valid.segment, unknown: [u64::MAX; 4] };
    segment.known.struct_size = grown(size_of::<sys::qk_segment>());
    (segment.known.nf4, segment.known.lora) = (&raw const nf4.known, &raw const lora.known);
    let mut linear = Later { known: valid.linear, unknown: [u64::MAX; 4] };
    linear.known.struct_size = grown(size_of::<sys::qk_linear_args>());
    linear.known.segments = &raw const segment.known;
    let workspace = valid.workspace() as *mut _;
    // SAFETY: valid structs, longer than the library knows.
    let status = unsafe { sys::qk_linear_forward(&raw const linear.known, workspace, M * 16 * 2, null_mut()) };
    assert_eq!(status, QK_OK);
    let y = valid.device.download(&valid.y).unwrap();
    assert!(y[..M * N].iter().all(|&y| y == bf16::ZERO), "it ran: weights and X are zero");
}

#[test]
fn arrays_of_longer_structs_are_walked_by_the_callers_size() {
    let valid = Valid::new();
    let mut segments = [0, 1].map(|_| Later { known: valid.segment, unknown: [u64::MAX; 4] });
    let size = size_of::<Later<sys::qk_segment>>() as u32;
    for segment in &mut segments {
        segment.known.struct_size = size;
    }
    let linear = sys::qk_linear_args { num_segments: 2, segments: &raw const segments[0].known, ..valid.linear };
    let mut columns = 0;
    // SAFETY: valid structs; device memory is not touched.
    assert_eq!(unsafe { sys::qk_lora_columns(&linear, &mut columns) }, QK_OK);
    assert_eq!(columns, 32, "each segment has its 12 ranks, rounded up to 16");
    segments[1].known.struct_size = size_of::<sys::qk_segment>() as u32;
    let linear = sys::qk_linear_args { segments: &raw const segments[0].known, ..linear };
    // SAFETY: as above.
    assert_eq!(unsafe { sys::qk_lora_columns(&linear, &mut columns) }, QK_ERROR_STRUCT_SIZE, "two sizes in one array");
}

/// The status of a call with a struct of zeros whose size is right and whose `reserved` is not 0.
macro_rules! with_reserved {
    ($type:ident, $call:expr) => {{
        let size = size_of::<sys::$type>();
        // SAFETY: a C struct of integers, floats and pointers.
        let mut args: sys::$type = unsafe { std::mem::zeroed() };
        (args.struct_size, args.reserved) = (size as u32, 1);
        let call: unsafe fn(*const sys::$type) -> i32 = $call;
        // SAFETY: refused before anything but the struct is read.
        (stringify!($type), unsafe { call(&args) })
    }};
}

#[test]
fn a_reserved_field_that_is_not_zero_is_refused_in_every_struct_that_has_one() {
    assert_eq!(spoiled(|v| v.nf4.reserved = 1), QK_ERROR_RESERVED);
    assert_eq!(spoiled(|v| v.segment.reserved = 1 << 31), QK_ERROR_RESERVED);
    let statuses = [
        with_reserved!(qk_embedding_args, |args| unsafe { sys::qk_embedding(args, null_mut()) }),
        with_reserved!(qk_swiglu_args, |args| unsafe { sys::qk_swiglu(args, null_mut()) }),
        with_reserved!(qk_swiglu_args, |args| unsafe { sys::qk_swiglu_backward(args, null_mut()) }),
        with_reserved!(qk_rms_norm_backward_args, |args| unsafe { sys::qk_rms_norm_backward(args, null_mut()) }),
        with_reserved!(qk_nf4_quantize_args, |args| unsafe { sys::qk_nf4_quantize(args, null_mut()) }),
        with_reserved!(qk_linear_backward_args, |args| unsafe { sys::qk_linear_dx(args, null_mut(), 0, null_mut()) }),
        with_reserved!(qk_attention_args, |args| unsafe { sys::qk_attention(args, null_mut()) }),
        with_reserved!(qk_attention_cache_args, |args| unsafe { sys::qk_attention_cache_append(args, null_mut()) }),
        with_reserved!(qk_cross_entropy_args, |args| unsafe { sys::qk_cross_entropy(args, null_mut(), 0, null_mut()) }),
        with_reserved!(qk_row_squares_args, |args| unsafe { sys::qk_row_squares(args, null_mut()) }),
        with_reserved!(qk_magnitude_norms_args, |args| unsafe { sys::qk_magnitude_norms(args, null_mut()) }),
        with_reserved!(qk_magnitude_args, |args| unsafe { sys::qk_magnitude(args, null_mut()) }),
        with_reserved!(qk_embedding_backward_args, |args| unsafe { sys::qk_embedding_backward(args, null_mut()) }),
        with_reserved!(qk_replace_rows_args, |args| unsafe { sys::qk_replace_rows(args, null_mut()) }),
        with_reserved!(qk_adamw_args, |args| unsafe { sys::qk_adamw_update(args, null_mut()) }),
    ];
    for (name, status) in statuses {
        assert_eq!(status, QK_ERROR_RESERVED, "{name}");
    }
}

/// `tests/kernels/abi.cu`, which is part of the emulated build.
#[cfg(feature = "emulation")]
mod grown {
    use super::*;
    use crate::sys::QK_ERROR_NULL_POINTER;
    use std::ffi::{CString, c_char};
    use std::ptr::null;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Grown {
        struct_size: u32,
        reserved: u32,
        first: i64,
        added: i64,
        appended: i64,
    }

    unsafe extern "C" {
        fn test_read_struct(from: *const Grown, to: *mut Grown) -> i32;
        fn test_read_element(first: *const Grown, index: u32, to: *mut Grown) -> i32;
        fn test_first_version(name: *const c_char) -> u32;
    }

    /// The library's reading of a struct that says it has `struct_size` bytes.
    fn read(struct_size: u32, reserved: u32) -> (i32, Grown) {
        let from = [Grown { struct_size, reserved, first: 1, added: 2, appended: 3 }, Grown::default()];
        let mut to = Grown { first: -1, added: -1, appended: -1, ..Grown::default() };
        // SAFETY: the library reads no more than the struct it knows, which is 32 bytes.
        let status = unsafe { test_read_struct(from.as_ptr(), &mut to) };
        (status, to)
    }

    #[test]
    fn what_a_shorter_struct_lacks_is_zero() {
        let known = |struct_size| Grown { struct_size, reserved: 0, first: 1, added: 2, appended: 3 };
        assert_eq!(read(16, 0), (QK_OK, Grown { added: 0, appended: 0, ..known(16) }));
        assert_eq!(read(24, 0), (QK_OK, Grown { appended: 0, ..known(24) }));
        assert_eq!(read(32, 0), (QK_OK, known(32)));
        assert_eq!(read(4096, 0), (QK_OK, known(4096)));
    }

    #[test]
    fn sizes_that_no_version_has_are_refused() {
        for size in [0, 4, 8, 12, 15, 20, 31, 33, 4097, 4104, u32::MAX, u32::MAX - 7] {
            assert_eq!(read(size, 0).0, QK_ERROR_STRUCT_SIZE, "{size} bytes");
        }
        assert_eq!(read(16, 1).0, QK_ERROR_RESERVED);
        // SAFETY: null is refused.
        assert_eq!(unsafe { test_read_struct(null(), &mut Grown::default()) }, QK_ERROR_NULL_POINTER);
    }

    #[test]
    fn elements_lie_as_far_apart_as_the_callers_struct_is_long() {
        for size in [16u32, 24, 32, 48] {
            let words = size as usize / 8;
            let mut array = vec![0u64; 3 * words];
            for (index, element) in array.chunks_mut(words).enumerate() {
                (element[0], element[1]) = (u64::from(size), 100 + index as u64);
            }
            let mut to = Grown::default();
            for index in 0..3 {
                // SAFETY: the array has three elements of `size` bytes each.
                assert_eq!(unsafe { test_read_element(array.as_ptr().cast(), index, &mut to) }, QK_OK);
                assert_eq!((to.first, to.added), (100 + i64::from(index), 0));
            }
            array[2 * words] += 8;
            // SAFETY: as above.
            let status = unsafe { test_read_element(array.as_ptr().cast(), 2, &mut to) };
            assert_eq!(status, QK_ERROR_STRUCT_SIZE, "two sizes in one array");
        }
        // SAFETY: null is refused.
        assert_eq!(unsafe { test_read_element(null(), 0, &mut Grown::default()) }, QK_ERROR_NULL_POINTER);
    }

    /// The smallest sizes that the library accepts are those of the committed table.
    #[test]
    fn first_versions_are_those_of_the_layout_table() {
        let table = include_str!("../../../tests/abi/layout.txt");
        let mut compared = 0;
        // A struct without a first version is one that the library writes; no caller tells its size.
        let taken = table.lines().filter(|line| line.starts_with("struct ") && line.contains(" first "));
        for line in taken {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (name, size, first) = (CString::new(words[1]).unwrap(), words[2], words[4]);
            // SAFETY: a C string.
            let grown = unsafe { test_first_version(name.as_ptr()) };
            assert_eq!(if grown > 0 { grown.to_string() } else { size.to_owned() }, first, "{line}");
            compared += 1;
        }
        assert!(compared > 15, "the table was not read");
    }
}
