use super::*;
use crate::base::synthetic::tiny_arch;

#[test]
fn adapters_lie_one_after_the_other_padded_with_zeros() {
    let pair = |a, b, r| LoraPair { a, b, r, k_in: 2, n_out: 2, alpha: 1.0, scale: 1.0, magnitude: None };
    let large = pair(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0], 2);
    let small = pair(&[9.0, 10.0], &[11.0, 12.0], 1);
    let adapters =
        [BTreeMap::from([("m".to_owned(), small)]), BTreeMap::new(), BTreeMap::from([("m".to_owned(), large)])];
    let of = |id: ParamId| one_after_the_other(&adapters, &id, 12, 2);
    assert_eq!(of(ParamId::a("m")), [9.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    assert_eq!(of(ParamId::b("m")), [11.0, 0.0, 12.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0]);
}

#[test]
fn weights_too_large_for_their_directions_are_named() {
    let arch = tiny_arch();
    let targets: Vec<_> = arch.names.all().collect();
    let [(name, [n, k])] = [targets[0]].map(|target| (arch.module(0, target), target.shape(&arch).into()));
    for (init, size, refused) in [
        (InitLora::Pissa, 1e13, true),
        (InitLora::Olora, f32::NAN, true),
        (InitLora::PissaIterations(2), 1.0, false),
        (InitLora::Random, 1e13, false),
    ] {
        let lora = LoraSpec { init, ..LoraSpec::uniform(&arch, &targets, 2, 4.0, 0.0) };
        let mut starts = Starts { lora, made: BTreeMap::new() };
        let values = (0..n * k).map(|i| size * (i as f32 * 0.37).sin()).collect();
        let tensor = HostTensor::from_f32(vec![n, k], values, StoredType::F32);
        let found = starts.residual(&arch, 1, &format!("{name}.weight"), tensor);
        let message = found.err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(message.contains(&format!("{name}.weight: found a value of")), refused, "{init:?}: {message}");
    }
}
