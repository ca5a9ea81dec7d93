//! Tiny random Llamas in Hugging Face format, for tests and for `bench`: no file of anybody's model is needed.
//!
//! Values depend on the seed and on the tensor's name only, so the same model can be written in one file or in many.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use qlora_kernels::rng::RngStream;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::arch::Arch;
use crate::error::{Context, Result};
use crate::files::safetensors::write_header;
use crate::files::tensor::{HostTensor, StoredType};

/// Options of a random model.
#[derive(Clone, Debug)]
pub struct Synthetic {
    pub config: Arch,
    pub seed: u64,
    pub stored: StoredType,
    /// 1: `model.safetensors`; more: an index and that many shards, tensors dealt out in turn.
    pub shards: usize,
    /// config.json as transformers v4 writes it, not as v5 does.
    pub v4: bool,
}

impl Synthetic {
    /// One bf16 file with a v5 config.json.
    pub fn new(config: Arch, seed: u64) -> Self {
        Self { config, seed, stored: StoredType::Bf16, shards: 1, v4: false }
    }

    /// Writes `config.json` and the weights into `dir`, which is made if need be; one tensor is in memory at a time.
    /// The files are not written atomically: this is for scratch directories.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).context(|| format!("{}: cannot be made", dir.display()))?;
        let dtype = self.stored.torch_name();
        let config = if self.v4 { self.config.to_json_v4(dtype) } else { self.config.to_json(dtype) };
        write_json(&dir.join("config.json"), &config)?;

        let tensors = self.config.tensors();
        if self.shards <= 1 {
            return self.write_file(&dir.join("model.safetensors"), &tensors.iter().collect::<Vec<_>>());
        }
        let mut weight_map = Map::new();
        for shard in 0..self.shards {
            let own: Vec<_> = tensors.iter().skip(shard).step_by(self.shards).collect();
            let file = format!("model-{:05}-of-{:05}.safetensors", shard + 1, self.shards);
            self.write_file(&dir.join(&file), &own)?;
            weight_map.extend(own.iter().map(|(name, _)| (name.clone(), Value::from(file.clone()))));
        }
        let total: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>() * self.stored.size()).sum();
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        write_json(&dir.join("model.safetensors.index.json"), &index)
    }

    /// The values of one tensor: norm weights within 0.1 of 1, everything else uniform with standard deviation 0.02,
    /// rounded to the stored type.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> HostTensor {
        // The name picks the stream; its digest spreads the names over all 64 bits.
        let digest: [u8; 32] = Sha256::digest(name).into();
        let domain = digest[..8].iter().fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
        let mut stream = RngStream::new(self.seed, domain);
        let (center, radius) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, 0.02 * 3f32.sqrt()) };
        let n = shape.iter().product();
        let values = (0..n).map(|_| center + radius * (2.0 * stream.uniform() - 1.0)).collect();
        HostTensor::from_f32(shape.to_vec(), values, self.stored)
    }

    fn write_file(&self, path: &Path, tensors: &[&(String, Vec<usize>)]) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = BufWriter::new(File::create(path)?);
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            let entries = tensors.iter().map(|(name, shape)| (name.as_str(), self.stored.dtype(), &shape[..]));
            write_header(&mut file, &metadata, entries)?;
            for (name, shape) in tensors {
                file.write_all(self.tensor(name, shape).bytes())?;
            }
            file.flush()
        };
        write().context(|| format!("{}: cannot be written", path.display()))
    }
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let write = || std::fs::write(path, serde_json::to_vec_pretty(value)?);
    write().context(|| format!("{}: cannot be written", path.display()))
}

/// Two layers, hidden 64, 4 heads over 2 kv heads of 16, vocabulary 96, untied, no biases.
pub fn tiny_arch() -> Arch {
    let config = serde_json::json!({
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
    });
    let config = config.as_object().expect("json! of braces is an object");
    Arch::from_json(Path::new("the tiny Llama"), config).expect("its sizes fit together")
}
