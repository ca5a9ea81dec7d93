//! Sizes of workspaces and tables, and paths, as they are computed here against those that the C library gives.

use crate::device::{View, ViewMut};
use crate::ops::linear::{self, Adapters, Input, Lora, Path, Segment, Weight};
use crate::ops::linear_backward::{Backward, Call, SegmentBackward};
use crate::ops::lora_gradients::{ForwardInputs, PairGradient, call};
use crate::ops::{
    adamw, attention, attention_backward, attention_cache, cross_entropy, linear_dx, linear_dx_product, linear_forward,
    linear_product, lora_gradients, magnitude_backward, nf4, norm_gradient,
};
use crate::shape::AttentionShape;
use crate::{CudaError, sys};
use proptest::prelude::*;

/// Device memory that no query follows, of any length.
fn view<'a, T: crate::device::Element>(len: usize) -> View<'a, T> {
    // SAFETY: aligned as every operand has to be; only its length and address are read.
    unsafe { View::from_raw_parts(std::ptr::without_provenance(4096), len) }
}

fn view_mut<'a, T: crate::device::Element>(len: usize) -> ViewMut<'a, T> {
    // SAFETY: as in `view`.
    unsafe { ViewMut::from_raw_parts(std::ptr::without_provenance_mut(4096), len) }
}

fn bytes_of(query: impl FnOnce(&mut usize) -> i32) -> Result<usize, i32> {
    let mut bytes = usize::MAX;
    match query(&mut bytes) {
        sys::QK_OK => Ok(bytes),
        code => Err(code),
    }
}

fn path_of(query: impl FnOnce(&mut u32) -> i32) -> Path {
    let mut path = u32::MAX;
    assert_eq!(query(&mut path), sys::QK_OK);
    match path {
        sys::QK_PATH_TENSOR_CORE => Path::TensorCore,
        sys::QK_PATH_SMALL_M => Path::SmallM,
        sys::QK_PATH_GENERIC => Path::Generic,
        _ => panic!("path {path}"),
    }
}

fn weight<'a>(kind: usize, n: usize, k: usize) -> Weight<'a> {
    let block_size = match kind {
        0 => return Weight::Dense(view(n * k)),
        1 => 64,
        _ => 128,
    };
    let absmax = nf4::Absmax::F32(view((n * k).div_ceil(block_size)));
    let layout = nf4::Layout::RowMajor;
    Weight::Nf4(nf4::Weight { n, k, block_size, layout, codes: view((n * k).div_ceil(2)), absmax })
}

/// N, r (0: no pair), a stride beyond N, whether dA and dB are wanted.
type SegmentShape = (usize, usize, usize, bool, bool);

fn segments() -> impl Strategy<Value = Vec<SegmentShape>> {
    let n = prop_oneof![1usize..300, (1usize..40).prop_map(|n| 8 * n), Just(14336)];
    let r = prop_oneof![Just(0usize), 1usize..=80, Just(256)];
    let segment = (n, r, prop_oneof![Just(0usize), 0usize..9], any::<bool>(), any::<bool>());
    proptest::collection::vec(segment, 1..=4)
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..300, (1usize..80).prop_map(|k| 64 * k), Just(8192)]
}

fn tokens() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..40, 0usize..5000, Just(37_000), Just(200_000)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn linear_layers(
        shapes in segments(), k in width(), beyond in prop_oneof![Just(0usize), 0usize..9], m in tokens(), kind in 0usize..3,
        given in any::<bool>(), adapters in prop_oneof![Just(0usize), 1usize..5],
    ) {
        let lora = |n: usize, r: usize| (r > 0).then(|| {
            let count = adapters.max(1);
            let adapters = (adapters > 0).then(|| Adapters { count, index: view(m), scales: None });
            Lora { r, scale: 1.0, a: view(count * r * k), b: view(count * n * r), adapters }
        });
        let columns: usize = shapes.iter().map(|&(_, r, ..)| r.next_multiple_of(8)).sum();
        let (ldx, s) = (k + beyond, given.then(|| view::<half::bf16>(m * columns).into()));
        let input = Input { m, k, x: view(m * ldx), ldx, s, dropout: None };
        let mut forward: Vec<Segment> = shapes
            .iter()
            .map(|&(n, r, beyond, ..)| {
                let (y, ldy) = (view_mut(m * (n + beyond)), n + beyond);
                Segment { n, weight: weight(kind, n, k), lora: lora(n, r), bias: None, y, ldy }
            })
            .collect();
        let (path, elements) = (linear_forward::path(&input, &mut forward), linear_forward::workspace_len(&input, &forward));
        let call_forward = linear::Call::new("test", &input, &mut forward).unwrap();
        // SAFETY: valid structs, of which no device memory is followed.
        let (path_in_c, bytes) = unsafe {
            (path_of(|p| sys::qk_linear_forward_path(&call_forward.linear(), p)),
             bytes_of(|b| sys::qk_linear_forward_workspace_size(&call_forward.linear(), b)))
        };
        prop_assert_eq!(path.unwrap(), path_in_c);
        prop_assert_eq!(Ok(elements * 2), bytes);
        let several = adapters > 0 && columns > 0;
        // SAFETY: as above.
        let bytes = unsafe { bytes_of(|b| sys::qk_linear_product_workspace_size(&call_forward.linear(), b)) };
        let expected = Ok(linear_product::workspace_len(&input, &forward) * 2);
        prop_assert_eq!(if several { Err(sys::QK_ERROR_NOT_BUILT) } else { expected }, bytes);

        let backward = Backward { m, k, t: s, dropout: None };
        let operands: Vec<SegmentBackward> = shapes
            .iter()
            .map(|&(n, r, beyond, ..)| SegmentBackward {
                n, weight: weight(kind, n, k), lora: lora(n, r), dy: view(m * (n + beyond)), lddy: n + beyond,
            })
            .collect();
        let call_backward = Call::new("test", &backward, &operands).unwrap();
        // SAFETY: as above.
        let (path_in_c, bytes) = unsafe {
            (path_of(|p| sys::qk_linear_dx_path(&call_backward.linear(), p)),
             bytes_of(|b| sys::qk_linear_dx_workspace_size(&call_backward.linear(), b)))
        };
        prop_assert_eq!(linear_dx::path(&backward, &operands).unwrap(), path_in_c);
        prop_assert_eq!(Ok(linear_dx::workspace_len(&backward, &operands) * 2), bytes);
        // SAFETY: as above.
        let bytes = unsafe { bytes_of(|b| sys::qk_linear_dx_product_workspace_size(&call_backward.linear(), b)) };
        let expected = Ok(linear_dx_product::workspace_len(&backward, &operands) * 2);
        prop_assert_eq!(if several { Err(sys::QK_ERROR_NOT_BUILT) } else { expected }, bytes);

        let inputs = ForwardInputs { x: view(m * ldx), ldx, s: view::<half::bf16>(m * columns).into() };
        let count = adapters.max(1);
        let mut pairs: Vec<PairGradient> = shapes
            .iter()
            .map(|&(n, r, _, da, db)| PairGradient {
                da: (da && r > 0).then(|| view_mut(count * r * k)),
                db: (db && r > 0).then(|| view_mut(count * n * r)),
            })
            .collect();
        let call_gradients = call("test", &backward, &operands, &inputs, &mut pairs).unwrap();
        // SAFETY: as above.
        let bytes = unsafe { bytes_of(|b| sys::qk_lora_gradients_workspace_size(&call_gradients.linear(), b)) };
        prop_assert_eq!(Ok(lora_gradients::workspace_bytes(&backward, &operands, &inputs, &mut pairs).unwrap()), bytes);
    }

    #[test]
    fn attention_of_both_kinds(
        m in tokens(), documents in 1usize..50, longest in prop_oneof![1usize..5000, 1usize..=attention_cache::max_longest(256)],
        kv_heads in 1usize..9, group in 1usize..9, head_dim in proptest::sample::select(&attention::HEAD_DIMS[..]),
    ) {
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim, soft_cap: None };
        let cache = attention_cache::Shape { attention: shape, m, documents, longest };
        let args = cache.describe(&cache.operation("test")).unwrap();
        // SAFETY: valid structs, of which no device memory is followed.
        let bytes = unsafe { bytes_of(|b| sys::qk_attention_cache_workspace_size(&args, b)) };
        prop_assert_eq!(Ok(attention_cache::workspace_bytes(&cache).unwrap()), bytes);

        let input = attention::Attention {
            shape, m, qkv: view(m * shape.qkv()), boundaries: view(documents + 1), window: None,
        };
        let (_, args) = attention::check("test", &input).unwrap();
        let args = sys::qk_attention_args { out: std::ptr::without_provenance_mut(4096), lse: std::ptr::without_provenance_mut(4096), ..args };
        // SAFETY: as above.
        let bytes = unsafe { bytes_of(|b| sys::qk_attention_backward_workspace_size(&args, b)) };
        prop_assert_eq!(Ok(attention_backward::workspace_len(&input) * 4), bytes);
    }

    #[test]
    fn cross_entropy_of_any_shape(
        m in tokens(), share in 0.0f64..=1.0, h in width(), vocab in prop_oneof![1usize..500, Just(128_256)],
        chunk in prop_oneof![1usize..300, Just(1024), Just(1 << 40)], gradient in any::<bool>(),
        rows in prop_oneof![1usize..40, 1usize..500],
    ) {
        let shape = cross_entropy::Shape { m, h, vocab, supervised: (m as f64 * share) as usize, chunk };
        let mut args = shape.describe(&shape.operation("test")).unwrap();
        if gradient {
            args.dhidden = std::ptr::without_provenance_mut(4096);
        }
        // SAFETY: a valid struct, of which no device memory is followed.
        let bytes = unsafe { bytes_of(|b| sys::qk_cross_entropy_workspace_size(&args, b)) };
        prop_assert_eq!(Ok(cross_entropy::workspace_bytes(&shape, gradient).unwrap()), bytes);
        (args.dhidden, args.dhead) = (std::ptr::without_provenance_mut(4096), std::ptr::without_provenance_mut(4096));
        // SAFETY: as above.
        let bytes = unsafe { bytes_of(|b| sys::qk_cross_entropy_workspace_size(&args, b)) };
        prop_assert_eq!(Ok(cross_entropy::workspace_bytes_with_head(&shape, None).unwrap()), bytes);
        let rows = rows.min(vocab);
        args.num_head_rows = rows as i64;
        // SAFETY: as above.
        let bytes = unsafe { bytes_of(|b| sys::qk_cross_entropy_workspace_size(&args, b)) };
        prop_assert_eq!(Ok(cross_entropy::workspace_bytes_with_head(&shape, Some(rows)).unwrap()), bytes);
    }

    #[test]
    fn gradients_of_vectors(m in tokens(), n in width(), parts in 1usize..70, wanted in any::<bool>()) {
        // SAFETY: C structs of integers, floats and pointers, of which no device memory is followed.
        let (mut magnitude, mut norm): (sys::qk_magnitude_args, sys::qk_norm_gradient_args) = unsafe { std::mem::zeroed() };
        (magnitude.struct_size, magnitude.m, magnitude.n) = (size_of::<sys::qk_magnitude_args>() as u32, m as i64, n as i64);
        if wanted {
            magnitude.dmagnitude = std::ptr::without_provenance_mut(4096);
        }
        // SAFETY: a valid struct.
        let bytes = unsafe { bytes_of(|b| sys::qk_magnitude_backward_workspace_size(&magnitude, b)) };
        prop_assert_eq!(Ok(if wanted { magnitude_backward::workspace_bytes(m, n) } else { 0 }), bytes);
        (norm.struct_size, norm.eps, norm.m) = (size_of::<sys::qk_norm_gradient_args>() as u32, 1e-5, m as i64);
        (norm.parts, norm.width, norm.ld) = (parts as i64, n as i64, (parts * n) as i64);
        // SAFETY: a valid struct.
        let bytes = unsafe { bytes_of(|b| sys::qk_norm_gradient_workspace_size(&norm, b)) };
        prop_assert_eq!(Ok(norm_gradient::workspace_bytes(m, parts, n)), bytes);
    }

    #[test]
    fn tables_of_the_optimizer(lengths in proptest::collection::vec(1usize..20_000, 1..20)) {
        let tensor = |&n: &usize| {
            let states = adamw::States::F32 { m: view_mut(n), v: view_mut(n) };
            adamw::Tensor { value: view_mut(n), working: None, gradient: view(n), states, rate: 0 }
        };
        let tensors = adamw::Tensors::new(lengths.iter().map(tensor).collect()).unwrap();
        let (table, rates) = (view(adamw::table_len(&lengths)), view(adamw::RATE_LEN));
        let described = tensors.describe(&tensors.operation("test"), table, rates, None).unwrap();
        // SAFETY: a valid array and a valid struct, of which no device memory is followed.
        let (bytes, norm) = unsafe {
            (bytes_of(|b| sys::qk_adamw_table_size(described.tensors, described.num_tensors, b)),
             bytes_of(|b| sys::qk_gradient_norm_workspace_size(&described, b)))
        };
        prop_assert_eq!(bytes.map(|bytes| bytes.div_ceil(8)), Ok(adamw::table_len(&lengths)));
        prop_assert_eq!(norm, Ok(adamw::workspace_len(&lengths) * 8));
    }
}

#[test]
fn shapes_that_no_kernel_takes_have_no_workspace() {
    let shape = cross_entropy::Shape { m: 4, h: 8, vocab: 10, supervised: 5, chunk: 1 };
    let refused = |error: CudaError, what: &str| assert!(error.to_string().contains(what), "{error}");
    refused(cross_entropy::workspace_bytes(&shape, true).unwrap_err(), "QK_ERROR_SHAPE");
    let attention = AttentionShape { heads: 3, kv_heads: 2, head_dim: 64, soft_cap: None };
    let cache = attention_cache::Shape { attention, m: 1, documents: 1, longest: 1 };
    refused(attention_cache::workspace_bytes(&cache).unwrap_err(), "QK_ERROR_SHAPE");
}
