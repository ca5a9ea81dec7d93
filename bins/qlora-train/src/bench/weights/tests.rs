use super::*;
use crate::base::synthetic::tiny_arch;

#[test]
fn every_tensor_of_the_shape_has_plausible_values() {
    let config = Arch { hidden_size: 128, intermediate_size: 256, ..tiny_arch() };
    let rms = |values: &[f32]| (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
    for double_quant in [true, false] {
        let quantization = Quantization::Nf4 { block_size: 64, double_quant };
        let mut source = RandomSource::new(&config, quantization, 3);
        let mut last = Vec::new();
        for (name, shape) in config.tensors() {
            let values = match name.contains("_proj") {
                true => match source.read_weight(&name).unwrap() {
                    WeightSource::Random(random) => random.into_matrix().dequantize(),
                    other => panic!("{name} is {other:?}, expected random NF4"),
                },
                false => source.read(&name).unwrap().to_f32(),
            };
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
            let expected = if name.contains("norm") { 1.0 } else { 0.02 };
            assert!((rms(&values) / expected - 1.0).abs() < 0.25, "{name}: {}", rms(&values));
            assert!(name.contains("norm") || values != last, "{name} repeats the tensor before it");
            last = values;
        }
        assert!(source.read("model.layers.9.mlp.up_proj.weight").is_err());
    }
}
