use super::*;
use crate::arch::shapes::shape;
use crate::arch::{Arch, Projection};
use crate::backend::{Residency, StateFormat};
use crate::model::Activations;

/// Plans of six layers of real models: tokens, layers that keep their activations, layers and whether the output
/// layer are in host memory, the tile; the bytes that a best-fit allocator with one end takes, and of what is
/// planned the thousandths that may lie between buffers.
type Case = (&'static str, usize, usize, usize, bool, Option<usize>, u64, u64);

#[test]
fn few_bytes_lie_between_buffers() {
    const LAYERS: usize = 6;
    let (large, small) = ("llama-3-70b", "llama-3-8b");
    let cases: [Case; 10] = [
        (large, 65_536, 2, 6, false, None, 39_171_227_904, 30),
        (large, 32_768, 0, 6, false, None, 15_917_089_024, 40),
        (large, 8192, 3, 6, false, None, 10_086_318_336, 10),
        (large, 65_536, 1, 6, true, Some(4096), 21_118_943_488, 20),
        (large, 183_461, 0, 6, false, Some(4096), 28_163_596_032, 15),
        (large, 146_104, 0, 6, false, Some(512), 22_312_639_744, 5),
        (small, 202_669, 0, 6, false, Some(512), 16_390_767_360, 5),
        (small, 8192, 2, 3, false, None, 4_698_405_120, 20),
        (small, 2048, 3, 0, false, None, 3_204_794_624, 5),
        (small, 8192, 0, 0, true, None, 3_636_521_216, 30),
    ];
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let (limit, host_limit) = (u64::MAX, u64::MAX);
    let budget = Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit, sharers: 1 };
    for (name, tokens, kept, pinned, head_waits, token_tile, before, thousandths) in cases {
        let arch = Arch { num_layers: LAYERS, ..shape(name).unwrap() };
        let place = |waits| if waits { Residency::Pinned } else { Residency::Device };
        let lora = LoraSpec::uniform(&arch, &Projection::ALL, 16, 16.0, 0.0);
        let spec = ModelSpec {
            trainable: true,
            states: StateFormat::Blockwise8,
            activations: Activations::Offload.keeping(kept, LAYERS),
            residency: (0..LAYERS).map(|layer| place(layer < pinned)).chain([place(head_waits)]).collect(),
            token_tile,
            ..ModelSpec::new(lora, arch, Quantization::NF4, tokens)
        };
        let plan = plan(&Device::unopened(0), &spec, &stored, PlannedJob::Train, budget).unwrap();
        let of = |name: &str| plan.buffers.iter().find(|line| line.name == name).map_or(0, |line| line.bytes);
        let (bytes, gaps) = (plan.run_bytes, of("gaps between buffers"));
        println!("{name}, {tokens} tokens, {kept} kept, {pinned} in host memory: {bytes} of {before}, {gaps} between");
        assert!(bytes < before && 1000 * gaps <= thousandths * bytes, "{name} {tokens}: {bytes}, {gaps} between");
        if kept == 2 && pinned == LAYERS {
            // Input and middle of both layers that keep them; the input that left before them is gone.
            assert_eq!(of("residual stream"), 4 * (2 * tokens * spec.arch.hidden_size) as u64);
        }
    }
}
