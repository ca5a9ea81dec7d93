use super::*;

#[test]
fn a_plan_for_a_named_gpu_has_the_rows_of_its_kind() {
    let of = |gpu, wanted| Linear::planned(gpu, wanted).may_dequantize();
    for (gpu, expected) in [(Some("h100"), true), (Some("H200"), true), (Some("l40s"), false), (None, false)] {
        assert_eq!(of(gpu, LinearKernels::Auto), expected, "{gpu:?}");
        assert!(of(gpu, LinearKernels::Dequantize) && !of(gpu, LinearKernels::Fused), "{gpu:?}");
    }
    assert!(Linear::planned(Some("h100"), LinearKernels::Auto).was_chosen());
    assert!(!Linear::planned(Some("h100"), LinearKernels::Dequantize).was_chosen());
    assert!(!Linear::fused().may_dequantize() && !Linear::default().may_dequantize());
}

#[test]
fn what_computes_is_said_in_words() {
    let linear = |wanted| {
        let (library, gpu) = (Some("13.0.2".into()), Some("NVIDIA H100 PCIe".into()));
        Linear { library, gpu, ..Linear::planned(Some("h100"), wanted) }
    };
    let chosen = linear(LinearKernels::Auto);
    assert_eq!(chosen.to_string(), "dequantize + cuBLASLt 13.0.2 for batches of 1,024 tokens and more, else fused");
    assert_eq!(
        chosen.arithmetic(),
        "bf16, linear layers by dequantize + cuBLASLt 13.0.2 on NVIDIA H100 PCIe for batches of 1,024 tokens and more"
    );
    let forced = linear(LinearKernels::Dequantize);
    assert!(forced.to_string().contains("of 17 tokens"));
    // The two compute batches between them in other ways, so that a run does not go on by the other.
    assert_ne!(forced.arithmetic(), chosen.arithmetic());
    assert_eq!((Linear::fused().to_string(), Linear::fused().arithmetic()), ("fused".to_owned(), FUSED.to_owned()));
}
