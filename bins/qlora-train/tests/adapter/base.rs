//! Checks that an adapter belongs to the base at hand.

use qlora_train::adapter::metadata::{BASE_FINGERPRINT, QUANTIZATION};
use qlora_train::adapter::{BaseQuantization, TargetModules};
use qlora_train::arch::{Arch, Projection};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::base::{BaseFingerprint, BaseName};
use qlora_train::lora::ParamId;

use super::{adapter, base, fingerprint, with_layers};
use trainer_lab::assert_refused::assert_refused;

#[test]
fn its_own_base_is_accepted_without_a_word() {
    let own = fingerprint("ab");
    let warnings = adapter(4, 8.0, &Projection::ALL, 1).check_base(&tiny_arch(), &own, &base(), false).unwrap();
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn other_weights_of_the_same_shape_are_refused_by_fingerprint() {
    let other = fingerprint("99");
    let words = ["qlora.base_fingerprint", &"ab".repeat(32), &other.whole, "org/tiny-llama", "other weights"];
    let adapter = adapter(4, 8.0, &Projection::ALL, 1);
    assert_refused(adapter.check_base(&tiny_arch(), &other, &base(), false), &words);
    let told = adapter.check_base(&tiny_arch(), &other, &base(), true).unwrap();
    assert!(told.len() == 1 && told[0].contains("other weights") && told[0].contains("differ from"), "{told:?}");
}

/// 16 bits against a copy in NF4 of another program: what quantizing leaves is the same.
#[test]
fn another_form_of_the_same_model_is_told_apart_from_another_model() {
    let adapter = adapter(4, 8.0, &Projection::ALL, 1);
    let other = BaseFingerprint { whole: "99".repeat(32), ..fingerprint("ab") };
    let words = ["another form of this model", "rounded otherwise", "--allow-other-base"];
    assert_refused(adapter.check_base(&tiny_arch(), &other, &base(), false), &words);
    let told = adapter.check_base(&tiny_arch(), &other, &base(), true).unwrap();
    assert!(told.len() == 1 && told[0].contains("another form of this model"), "{told:?}");
}

/// Weights that are rounded otherwise than in training compute something else. Other weights in 16 bits may be those of
/// NF4, dequantized: of these the fingerprint says all that is known.
#[test]
fn a_base_that_is_held_otherwise_is_told_and_a_dequantized_copy_is_not() {
    let mut adapter = adapter(4, 8.0, &Projection::ALL, 1);
    let (own, trained) = (fingerprint("ab"), BaseQuantization::nf4(64, false, 0));
    let copy = BaseFingerprint { whole: "99".repeat(32), ..fingerprint("ab") };
    for (base, held, words) in [
        (
            Some(&own),
            BaseQuantization::NONE,
            Some("quantized as nf4, block 64; this base is in 16 bits: it learned with rounded"),
        ),
        (None, BaseQuantization::NONE, Some("this base is in 16 bits")),
        (Some(&own), BaseQuantization::nf4(64, true, 0), Some("these weights are rounded otherwise")),
        (Some(&copy), BaseQuantization::nf4(128, false, 0), Some("this base is quantized as nf4, block 128: these")),
        (Some(&own), trained.clone(), None),
        (Some(&copy), BaseQuantization::NONE, None),
    ] {
        let told = adapter.check_base_quantization(base, &held);
        assert_eq!(told.is_some(), words.is_some(), "{held}: {told:?}");
        assert!(words.is_none_or(|words| told.as_ref().unwrap().contains(words)), "{held}: {told:?}");
    }
    adapter.metadata.insert(QUANTIZATION.to_owned(), BaseQuantization::NONE.to_json());
    assert_eq!(adapter.check_base_quantization(Some(&own), &BaseQuantization::NONE), None);
    let told = adapter.check_base_quantization(Some(&copy), &trained).unwrap();
    assert!(told.contains("on a base in 16 bits; this base is quantized as nf4, block 64: "), "{told}");
    adapter.metadata.clear();
    assert_eq!(adapter.check_base_quantization(Some(&own), &BaseQuantization::NONE), None);
}

#[test]
fn another_shape_or_number_of_layers_is_refused_whoever_made_the_adapter() {
    let own = fingerprint("ab");
    let mut foreign = adapter(4, 8.0, &Projection::ALL, 1);
    foreign.metadata.remove(BASE_FINGERPRINT);
    for adapter in [adapter(4, 8.0, &Projection::ALL, 1), foreign] {
        let wide = Arch { intermediate_size: 160, ..tiny_arch() };
        let words = ["gate_proj of layer 0", "128 x 64", "160 x 64"];
        assert_refused(adapter.check_base(&wide, &own, &base(), false), &words);
        assert_refused(adapter.check_base(&with_layers(1), &own, &base(), false), &["layer 1", "layers below 1"]);
    }
}

#[test]
fn a_module_that_the_base_does_not_have_is_refused() {
    for module in ["model.layers.0.self_attn.qkv_proj", "model.layers.00.self_attn.q_proj"] {
        let mut foreign = adapter(4, 8.0, &[Projection::Q], 1);
        foreign.insert(&ParamId::a(module), [4, 64], vec![0.5; 4 * 64]);
        foreign.insert(&ParamId::b(module), [64, 4], vec![0.5; 64 * 4]);
        foreign.config.target_modules = TargetModules::Pattern("all-linear".into());
        assert_refused(foreign.check_shapes(&tiny_arch(), &base()), &[module, "q_proj, k_proj", "org/tiny-llama"]);
    }
}

#[test]
fn a_foreign_adapter_that_fits_warns() {
    let mut foreign = adapter(4, 8.0, &[Projection::Q], 1);
    foreign.metadata.clear();
    let warnings = foreign.check_base(&tiny_arch(), &fingerprint("99"), &base(), false).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("no fingerprint"), "{warnings:?}");
}

#[test]
fn another_name_or_revision_warns_where_no_fingerprint_says_more() {
    let own = fingerprint("ab");
    let renamed = BaseName { name: "local-copy".into(), revision: Some("fff".into()), is_hub: false };
    let same = adapter(4, 8.0, &[Projection::Q], 1);
    let warnings = same.check_base(&tiny_arch(), &own, &renamed, false).unwrap();
    // The fingerprint has proven that the weights are the same, whatever their directory is called.
    assert_eq!(warnings, [""; 0]);
    let mut foreign = same;
    foreign.metadata.remove(BASE_FINGERPRINT);
    let warnings = foreign.check_base(&tiny_arch(), &own, &renamed, false).unwrap();
    assert!(warnings.iter().any(|w| w.contains("org/tiny-llama") && w.contains("local-copy")), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("0123abc") && w.contains("fff")), "{warnings:?}");
    // A path ends with the name.
    foreign.config.base_model_name_or_path = Some("/models/local-copy/".into());
    foreign.config.revision = None;
    let warnings = foreign.check_base(&tiny_arch(), &own, &renamed, false).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("no fingerprint"), "{warnings:?}");
}

#[test]
fn targeted_linears_without_tensors_are_named() {
    let own = fingerprint("ab");
    let warnings = adapter(4, 8.0, &[Projection::Q], 1).check_base(&with_layers(4), &own, &base(), false).unwrap();
    assert!(warnings.len() == 1 && warnings[0].contains("q_proj of layer 2 and 1 more"), "{warnings:?}");
    let mut partial = adapter(4, 8.0, &[Projection::Q], 1);
    partial.config.layers_to_transform = Some(vec![0, 1]);
    assert_eq!(partial.check_base(&with_layers(4), &own, &base(), false).unwrap(), [""; 0]);
}
