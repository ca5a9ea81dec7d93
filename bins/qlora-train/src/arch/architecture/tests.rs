use super::*;
use crate::arch::OLMO2_NAMES;
use crate::base::synthetic::tiny_arch;

#[test]
fn what_no_operation_computes_is_refused_by_name() {
    let tiny = tiny_arch();
    let rope = tiny.rope();
    let first = LayerArch { window: None, rope: Some(rope.clone()) };
    let layers = |rope| vec![first.clone(), LayerArch { window: None, rope }];
    let partial = LayerArch::uniform(Rope { partial: 0.5, ..rope });
    let multipliers = Multipliers { attention: Some(0.5), ..Multipliers::NONE };
    let small = Multipliers { residual: 0.5, ..Multipliers::NONE };
    let not_rotated = LayerArch { window: None, rope: None };
    let cases = [
        (Arch { layers: vec![not_rotated; 2], ..tiny.clone() }, "no layer with rotary"),
        (Arch { layers: layers(None), multipliers, ..tiny.clone() }, "layers without rotary"),
        (Arch { layers: partial, multipliers, ..tiny.clone() }, "rotated in part"),
        (Arch { qk_norm: QkNorm::HeadRotated, multipliers, ..tiny.clone() }, "after the rotation"),
        (Arch { names: &OLMO2_NAMES, multipliers: small, ..tiny.clone() }, "not normalized"),
    ];
    tiny.check_computed("x").unwrap();
    for (arch, what) in cases {
        let error = arch.check_computed("config.json").unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("config.json") && error.contains("llama"), "{error}");
    }
}

#[test]
fn kinds_of_rotary_positions_are_counted_once() {
    let rope = tiny_arch().rope();
    let [full, local] = [Some(rope.clone()), Some(Rope { theta: 7.0, ..rope })];
    let layers = [None, local.clone(), full, local, None].map(|rope| LayerArch { window: None, rope }).to_vec();
    let arch = Arch { layers, ..tiny_arch() };
    assert_eq!((arch.rope().theta, arch.ropes().len()), (7.0, 2));
    arch.check_computed("x").unwrap();
}

#[test]
fn a_list_of_layers_that_is_shorter_than_the_model_repeats() {
    let local = LayerArch { window: Some(4), rope: None };
    let full = LayerArch { window: None, rope: None };
    let arch = Arch { layers: vec![local.clone(), local, full], ..tiny_arch() };
    let windows: Vec<_> = (0..7).map(|layer| arch.layer(layer).window).collect();
    assert_eq!(windows, [Some(4), Some(4), None, Some(4), Some(4), None, Some(4)]);
}
