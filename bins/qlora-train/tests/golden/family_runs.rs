//! Five training steps of each family's tiny model beside PEFT, and NF4 both ways with transformers and bitsandbytes
//! (`tests/golden/family_runs.py`).

use super::families::{documents, logits, model, values, worst};
use super::{Tensors, cosine, json, spec, tensors, workspace};
use qlora_kernels::nf4::Nf4Options;
use qlora_train::backend::{Batch, Quantization};
use qlora_train::base::{Checkpoint, QuantizeOptions, quantize};
use qlora_train::data::MicroBatch;
use qlora_train::model::optimizer_step::{Hyperparameters, optimizer_step};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// Those of `nf4.json`, which the script wrote for all that it knows.
fn families() -> Vec<(String, String)> {
    let record = json("nf4.json");
    let hash = |(family, hash): (&String, &serde_json::Value)| (family.clone(), hash.as_str().unwrap().to_owned());
    let families: Vec<_> = record.as_object().unwrap().iter().map(hash).collect();
    assert!(families.len() >= 12);
    families
}

fn golden(family: &str) -> PathBuf {
    workspace().join("tests/golden").join(family)
}

/// Distances of five steps of AdamW at `rate` from those of PEFT: losses, norms of the gradient, and the cosine of the
/// changes of the worst tensor.
fn five_steps(family: &str, rate: f64) -> [f64; 3] {
    let checkpoint = Checkpoint::open(&golden(family)).unwrap();
    let expected = tensors(&format!("{family}/expected.safetensors"));
    let steps = tensors(&format!("{family}/steps.safetensors"));
    let micro = MicroBatch::new(&documents(&expected));
    let spec = spec(&checkpoint, checkpoint.arch().num_layers, Quantization::None, micro.tokens());
    let start = values(&expected);
    let (mut cpu, mut model) = model(&checkpoint, &spec, start.clone());
    let hyper = Hyperparameters {
        learning_rate_a: rate,
        learning_rate_b: rate,
        weight_decay: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    };
    let reports: Vec<_> = (0..steps["losses"].len() as u64)
        .map(|step| optimizer_step(&mut cpu, &mut model, &hyper, step, 1, 1.0, &[Batch::from(&micro)]).unwrap())
        .collect();
    assert_eq!(reports.len(), 5);
    let relative = |ours: &dyn Fn(usize) -> f64, name: &str| {
        let apart = |(step, theirs): (usize, &f64)| (ours(step) / theirs - 1.0).abs();
        steps[name].iter().enumerate().map(apart).fold(0.0, f64::max)
    };
    let loss = relative(&|step| reports[step].loss, "losses");
    let norm = relative(&|step| reports[step].grad_norm, "gradient_norms");
    let ours: Tensors = model
        .param_values(&cpu)
        .unwrap()
        .into_iter()
        .map(|(id, _, values)| (id.peft_key(), values.into_iter().map(f64::from).collect()))
        .collect();
    assert_eq!(ours.len(), start.len());
    let same = |(name, ours): (&String, &Vec<f64>)| {
        let theirs = &steps[&format!("final.{name}")];
        cosine(ours.iter().zip(theirs).zip(&start[name]).map(|((ours, theirs), start)| (ours, theirs, *start)))
    };
    [loss, norm, ours.iter().map(same).fold(1.0, f64::min)]
}

/// f32 against f32; a rate that is 2% off shows.
#[test]
fn five_steps_of_each_family_follow_peft() {
    for (family, _) in families() {
        let [loss, norm, same] = five_steps(&family, 5e-3);
        println!("{family}: loss within {loss:.1e}, gradient norm {norm:.1e}, cosine of the changes {same:.8}");
        assert!(loss <= 1e-5, "{family}: loss {loss}");
        assert!(norm <= 1e-4, "{family}: gradient norm {norm}");
        assert!(same >= 0.9999, "{family}: cosine {same}");
        let [loss, ..] = five_steps(&family, 5.1e-3);
        assert!(loss > 5e-5, "{family}: a rate that is off moves the loss by {loss}");
    }
}

/// `quantize` writes the bytes that transformers and bitsandbytes read as the original by the rules. What they wrote
/// has here the logits that it has there.
#[test]
fn each_family_goes_both_ways_in_nf4() {
    let options = QuantizeOptions {
        nf4: Nf4Options { block_size: 64, double_quant: true },
        skip_modules: Vec::new(),
        max_shard_bytes: 1 << 30,
    };
    for (family, hash) in families() {
        // The file names its original by its directory.
        let scratch = tempfile::tempdir().unwrap();
        let [original, output] = ["original", "quantized"].map(|name| scratch.path().join(name));
        std::fs::create_dir(&original).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(golden(&family).join(name), original.join(name)).unwrap();
        }
        quantize(&Checkpoint::open(&original).unwrap(), &output, &options, &mut |_| Ok(())).unwrap();
        let written = Sha256::digest(std::fs::read(output.join("model.safetensors")).unwrap());
        let written: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(written, hash, "{family}: other bytes than those that were read in transformers");

        let theirs = Checkpoint::open(&golden(&family).join("nf4")).unwrap();
        let nf4 = theirs.quantization().unwrap();
        assert!(theirs.original().is_none() && nf4.block_size == 64);
        let expected = tensors(&format!("{family}/expected.safetensors"));
        let micro = MicroBatch::new(&documents(&expected));
        let quantization = Quantization::Nf4 { block_size: nf4.block_size, double_quant: nf4.double_quant };
        let spec = spec(&theirs, theirs.arch().num_layers, quantization, micro.tokens());
        let there = tensors(&format!("{family}/nf4/logits.safetensors"));
        let apart = worst(&logits(&theirs, &spec, &micro), &there["logits"]);
        println!("{family}: logits within {apart:.1e} of those of bitsandbytes' checkpoint");
        assert!(apart <= 1e-5, "{family}: logits {apart}");
    }
}
