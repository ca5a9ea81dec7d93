//! Models in 16 and 32 bits, which the device quantizes while they are loaded.

use crate::commands::{Directory, train};
use crate::sources::{ROOM, config, small_config, spec};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_train::arch::Arch;
use qlora_train::arch::shapes::shape;
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Quantization, Weights};
use qlora_train::base::Checkpoint;
use qlora_train::base::synthetic::Synthetic;
use qlora_train::files::tensor::{StoredType, WeightSource};
use qlora_train::model::Source;
use qlora_train::session::CheckpointSource;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A run that quantizes on the device gives the same adapter as one on a model that the host quantized before, whatever
/// type and files the weights are stored in, and wherever they wait.
#[test]
fn a_model_that_the_device_quantizes_trains_as_the_one_that_the_host_quantized() {
    let directory = Directory::small();
    let arch = Arch { vocab_size: config().vocab_size, ..small_config() };
    let plain = ("--no-double-quant --nf4-block-size 128", "--double-quant false --nf4-block-size 128");
    for (stored, (quantize, settings), weights) in [
        (StoredType::Bf16, ("", ""), "host"),
        (StoredType::F16, plain, "resident"),
        (StoredType::F32, ("", ""), "resident"),
    ] {
        let (model, nf4) = (stored.name().to_owned(), format!("{}-nf4", stored.name()));
        Synthetic { stored, shards: 3, ..Synthetic::new(arch.clone(), 1) }.write(&directory.path(&model)).unwrap();
        directory.done(&format!("quantize --json --model {model} --output {nf4} {quantize}"));
        let trained = |model: &str, settings: &str| {
            let line = train(&format!("--output-dir out-{model} --device cuda {settings}"));
            let line = line.replace("--model model", &format!("--model {model}"));
            let line = line.replace("--gradient-accumulation-steps 2", "--gradient-accumulation-steps 1");
            directory.done(&line.replace("--max-steps 4", "--max-steps 2"));
            let file = |name: &str| std::fs::read(directory.path(&format!("out-{model}")).join(name)).unwrap();
            let run: Value = serde_json::from_slice(&file("run.json")).unwrap();
            (file("adapter_model.safetensors"), run["base"]["fingerprint"].as_str().unwrap().to_owned())
        };
        let (expected, of_original) = trained(&nf4, "");
        let (found, fingerprint) = trained(&model, &format!("{settings} --weights {weights}"));
        assert!(found == expected, "{model}, {weights}");
        assert_eq!(fingerprint, of_original, "{model}");
        assert_eq!(fingerprint, Checkpoint::open(&directory.path(&model)).unwrap().fingerprint().unwrap());
    }
}

#[test]
fn a_value_that_is_not_finite_is_refused_with_its_place() {
    let directory = Directory::new();
    let path = directory.path("model/model.safetensors");
    let checkpoint = Checkpoint::open(&directory.path("model")).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    // The value in row 5, column 7, which the header tells the place of.
    let bytes = std::fs::read(&path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let first = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let columns = checkpoint.shape(name).unwrap()[1];
    let at = 8 + len + first + 2 * (5 * columns + 7);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&0x7f80u16.to_le_bytes(), at as u64).unwrap();
    let output = directory.run(&train("--output-dir out --device cuda"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    let place = format!("tensor `{name}`: found inf at row 5, column 7, expected finite numbers");
    assert!(errors.contains("model.safetensors") && errors.contains(&place), "{errors}");
}

/// Reads and quantizes every linear weight on the device, from its pieces, and on the host, as a whole. The squares of
/// the rows of both are the same to the bit: another code or scale would change them. Returns the bytes that were
/// stored and the time of each; `room` is the device's.
fn quantize_on_both(model: &Path, room: u64) -> (u64, Duration, Duration) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let (arch, options) = (checkpoint.arch().clone(), Nf4Options::default());
    let Nf4Options { block_size, double_quant } = options;
    let mut device = Cuda::new(0, spec(arch.clone()).run_shape(), &arch, room).unwrap();
    let mut source = CheckpointSource::new(&checkpoint, BTreeMap::new(), 1);
    let (mut bytes, mut on_device, mut on_host) = (0, Duration::ZERO, Duration::ZERO);
    for layer in 0..arch.num_layers {
        for projection in arch.names.all() {
            let (name, (n, k)) = (arch.weight_name(layer, projection), projection.shape(&arch));
            let start = Instant::now();
            let quantized =
                device.quantized(&name, n, k, &options, &mut |take| source.read_in_pieces(&name, take)).unwrap();
            let found = device.row_squares(&name, &quantized, n, k).unwrap();
            on_device += start.elapsed();
            drop(quantized);

            let start = Instant::now();
            let WeightSource::Tensor(tensor) = checkpoint.read_weight(&name).unwrap() else { panic!("{name}") };
            let matrix = Nf4Matrix::quantize(&tensor.to_f32(), n, k, &options).unwrap();
            on_host += start.elapsed();
            bytes += tensor.bytes().len() as u64;
            let (held, stored) = (Quantization::Nf4 { block_size, double_quant }, tensor.stored_type());
            let mut whole = Some(WeightSource::Nf4(matrix));
            let read = &mut || Ok(whole.take().expect("a weight is read once"));
            let quantized = device.weight(&name, n, k, held, stored, read).unwrap();
            let expected = device.row_squares(&name, &quantized, n, k).unwrap();
            assert!(found.len() == n && found == expected, "{name}");
            assert!(found.iter().all(|square| *square > 0.0), "{name}");
        }
    }
    (bytes, on_device, on_host)
}

#[test]
fn weights_are_quantized_on_the_device_as_on_the_host() {
    let directory = Directory::new();
    let (bytes, ..) = quantize_on_both(&directory.path("model"), ROOM);
    let weights: usize = config().names.all().map(|of| of.shape(&config())).map(|(n, k)| n * k).sum();
    assert_eq!(bytes, 2 * (config().num_layers * weights) as u64);
}

/// Layers of a Llama 3 8B. What is measured goes into the folder that `QLORA_LOADING_RECORDS` names, if it names one.
#[test]
#[ignore = "writes and reads two gigabytes: for a GPU"]
fn layers_of_a_large_model_are_quantized_on_the_device_as_on_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let arch = Arch { num_layers: 4, vocab_size: 1024, ..shape("llama-3-8b").unwrap() };
    Synthetic { shards: 2, ..Synthetic::new(arch, 1) }.write(directory.path()).unwrap();
    let (bytes, on_device, on_host) = quantize_on_both(directory.path(), 1 << 30);
    let [device, host] = [on_device, on_host].map(|time| time.as_secs_f64());
    let (gigabytes, now) = (bytes as f64 / 1e9, jiff::Timestamp::now());
    println!(
        "loading: {gigabytes:.2} GB of bf16, read and quantized at {:.2} GB/s on the device and {:.2} GB/s on the host",
        gigabytes / device,
        gigabytes / host
    );
    let Some(records) = std::env::var_os("QLORA_LOADING_RECORDS").map(PathBuf::from) else { return };
    let record = json!({
        "date": now.to_string(), "gpu": qlora_kernels::device::Device::open().unwrap().name(),
        "model": "4 layers of llama-3-8b", "stored_bytes": bytes, "device_seconds": device, "host_seconds": host,
    });
    std::fs::create_dir_all(&records).unwrap();
    std::fs::write(records.join(format!("{}.json", now.strftime("%Y-%m-%d-%H%M"))), format!("{record}\n")).unwrap();
}
