use super::*;

const HOPPER: Card = Card { compute_capability: (9, 0), has_cublaslt: true };
const SHAPE: Shape = Shape { pass: Pass::Forward, m: 2048, n: 10_240, k: 8192, columns: 48, dropout: false };

#[test]
fn the_library_is_chosen_on_hopper_for_many_tokens_and_nowhere_else() {
    assert_eq!(choose(&HOPPER, &SHAPE), Row::Dequantize);
    for compute_capability in [(0, 0), (8, 0), (8, 6), (8, 9), (10, 0), (12, 0)] {
        assert_eq!(choose(&Card { compute_capability, ..HOPPER }, &SHAPE), Row::Fused, "{compute_capability:?}");
    }
    assert_eq!(choose(&Card { has_cublaslt: false, ..HOPPER }, &SHAPE), Row::Fused);
    let of = |m| choose(&HOPPER, &Shape { m, ..SHAPE });
    assert_eq!([1, 1023, 1024, 100_000].map(of), [Row::Fused, Row::Fused, Row::Dequantize, Row::Dequantize]);
}

#[test]
fn what_the_row_does_not_compute_is_left_to_the_fused_kernels() {
    let dx = Shape { pass: Pass::Dx, ..SHAPE };
    assert_eq!(choose(&HOPPER, &dx), Row::Dequantize);
    assert_eq!(choose(&HOPPER, &Shape { dropout: true, ..dx }), Row::Fused);
    // S has been computed with its mask, and without LoRA there is nothing to mask.
    for shape in [Shape { dropout: true, ..SHAPE }, Shape { dropout: true, columns: 0, ..dx }] {
        assert_eq!(choose(&HOPPER, &shape), Row::Dequantize, "{shape:?}");
    }
    for shape in [Shape { n: 10_241, ..SHAPE }, Shape { k: 8190, ..SHAPE }, Shape { m: 16, ..SHAPE }] {
        assert!(!shape.can_dequantize(), "{shape:?}");
    }
    assert!(Shape { m: 17, ..SHAPE }.can_dequantize());
}

#[test]
fn a_dispatch_has_the_name_of_its_row() {
    assert_eq!((Dispatch::default().row(), Row::default()), (Row::Fused, Row::Fused));
    assert_eq!(Dispatch::Fused.to_string(), "fused");
    assert_eq!(Row::Dequantize.to_string(), "dequantize + cuBLASLt");
}
