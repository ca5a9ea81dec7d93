//! A random model in memory, and the f64 oracle of its loss.

use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::reference::{self, LoraTerm};
use qlora_kernels::rng::{Dropout, RngStream};
use qlora_kernels::rope::RopeTable;
use qlora_kernels::shape::AttentionShape;
use qlora_train::arch::{Input, NormWeight, Projection, QkNorm};
use qlora_train::backend::{Batch, Quantization};
use qlora_train::base::synthetic::Synthetic;
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::ParamId;
use qlora_train::model::{ModelSpec, Source};
use std::collections::HashMap;

/// Weights of [`Synthetic`] made larger, so that every part of the block bends the loss; A and B both non-zero.
pub struct Memory {
    synthetic: Synthetic,
    shapes: HashMap<String, Vec<usize>>,
    pub lora: HashMap<ParamId, Vec<f32>>,
    seed: u64,
}

impl Memory {
    pub fn new(synthetic: Synthetic) -> Self {
        let shapes = synthetic.config.tensors().into_iter().collect();
        Self { seed: synthetic.seed, synthetic, shapes, lora: HashMap::new() }
    }

    pub fn tensor(&self, name: &str) -> HostTensor {
        let tensor = self.synthetic.tensor(name, &self.shapes[name]);
        let factor = if name.contains("norm") { 1.0 } else { 6.0 };
        let values = tensor.to_f32().into_iter().map(|x| x * factor).collect();
        HostTensor::from_f32(tensor.shape.clone(), values, self.synthetic.stored)
    }
}

impl Source for Memory {
    fn stored(&self, _name: &str) -> StoredType {
        self.synthetic.stored
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        Ok(self.tensor(name))
    }

    fn lora(&mut self, id: &ParamId, len: usize, _columns: usize) -> Result<Vec<f32>> {
        let (layer, projection) = self.synthetic.config.find(id.module()).unwrap();
        let domain = 1 + (layer * 16 + projection.number() * 2 + id.kind() as usize) as u64;
        let mut stream = RngStream::new(self.seed, domain);
        let values: Vec<f32> = (0..len).map(|_| 0.4 * (stream.uniform() - 0.5)).collect();
        self.lora.insert(id.clone(), values.clone());
        Ok(values)
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| f64::from(x)).collect()
}

/// The frozen part of the model in f64, dequantized.
pub struct Oracle {
    spec: ModelSpec,
    tensors: HashMap<String, Vec<f64>>,
}

impl Oracle {
    pub fn new(spec: &ModelSpec, memory: &Memory) -> Self {
        let mut tensors = HashMap::new();
        for (name, shape) in spec.arch.tensors() {
            let tensor = memory.tensor(&name);
            let linear = name.contains("_proj.weight");
            let values = match spec.quantization {
                Quantization::Nf4 { block_size, double_quant } if linear => {
                    let options = Nf4Options { block_size, double_quant };
                    Nf4Matrix::quantize(&tensor.to_f32(), shape[0], shape[1], &options).unwrap().dequantize()
                }
                _ => tensor.to_f32(),
            };
            tensors.insert(name, wide(&values));
        }
        Self { spec: spec.clone(), tensors }
    }

    /// The sum of the supervised tokens' losses under trainable tensors `lora`.
    pub fn loss(&self, lora: &HashMap<ParamId, Vec<f64>>, batch: &Batch, draw: Option<u32>) -> f64 {
        let c = &self.spec.arch;
        let (m, h, eps) = (batch.tokens(), c.hidden_size, f64::from(c.norm.eps));
        let soft_cap = c.attention_soft_cap;
        let shape = AttentionShape { heads: c.num_heads, kv_heads: c.num_kv_heads, head_dim: c.head_dim, soft_cap };
        let embedding = &self.tensors["model.embed_tokens.weight"];
        let mut stream: Vec<f64> =
            batch.input_ids.iter().flat_map(|&id| embedding[id as usize * h..][..h].to_vec()).collect();
        let by = c.multipliers;
        scale(&mut stream, by.embedding.into());
        let weight_of = |name: &str| {
            let one = if c.norm.weight == NormWeight::OnePlus { 1.0 } else { 0.0 };
            self.tensors[name].iter().map(|w| one + w).collect::<Vec<f64>>()
        };
        let norm = |x: &[f64], name: &str| {
            let mut y = vec![0.0; x.len()];
            reference::rms_norm(x, &weight_of(name), eps, &mut y);
            y
        };
        for layer in 0..c.num_layers {
            let linear = |x: &[f64], module: Projection, site: usize| self.linear(lora, x, layer, module, site, draw);
            let around = |x: &[f64], name: Option<&str>| match name {
                Some(name) => norm(x, &c.layer_tensor(layer, name)),
                None => x.to_vec(),
            };
            let normed = around(&stream, c.names.attention_norms.input);
            let of = |input: Input, normed: &[f64]| -> Vec<Vec<f64>> {
                c.names.of_input(input).map(|module| linear(normed, module, input as usize)).collect()
            };
            let parts = of(Input::Attention, &normed);
            let mut qkv: Vec<f64> = (0..m)
                .flat_map(|t| parts.iter().flat_map(move |p| p[t * p.len() / m..(t + 1) * p.len() / m].to_vec()))
                .collect();
            let normalize = |qkv: &mut Vec<f64>| {
                let Some(norms) = c.qk_norms() else { return };
                let [q, k] = norms.map(|(name, _)| weight_of(&c.layer_tensor(layer, name)));
                reference::head_norm(&qkv.clone(), [&q, &k], eps, shape, qkv);
            };
            let rotated_first = c.qk_norm == QkNorm::HeadRotated;
            if !rotated_first {
                normalize(&mut qkv);
            }
            if let Some(rope) = &c.layer(layer).rope {
                let rotated = rope.rotary_dim(c.head_dim);
                let table = RopeTable::<f64>::new(rotated, rope.theta, rope.scaling.clone(), self.spec.positions);
                let heads = shape.heads + shape.kv_heads;
                reference::rope(&mut qkv, shape.qkv(), heads, c.head_dim, batch.positions, &table);
            }
            if rotated_first {
                normalize(&mut qkv);
            }
            if let Some(of_scores) = by.attention {
                // The reference has the scale 1 / √D.
                let queries = qkv.chunks_exact_mut(shape.qkv()).map(|row| &mut row[..shape.out()]);
                queries.for_each(|queries| scale(queries, f64::from(of_scores) / shape.scale()));
            }
            let (mut attention, mut lse) = (vec![0.0; m * shape.out()], vec![0.0; m * shape.heads]);
            let window = c.layer(layer).window;
            reference::attention(&qkv, batch.boundaries, shape, window, &mut attention, &mut lse);
            let given = around(&linear(&attention, Projection::O, 1), c.names.attention_norms.output);
            add(&mut stream, by.residual.into(), &given);
            let normed = around(&stream, c.names.mlp_norms.input);
            let (parts, i) = (of(Input::Mlp, &normed), c.intermediate_size);
            let gate_up: Vec<f64> = (0..m)
                .flat_map(|t| parts.iter().flat_map(move |p| p[t * p.len() / m..(t + 1) * p.len() / m].to_vec()))
                .collect();
            let mut activated = vec![0.0; m * i];
            reference::swiglu(&gate_up, &mut activated, i, c.activation);
            let given = around(&linear(&activated, Projection::Down, 3), c.names.mlp_norms.output);
            add(&mut stream, by.residual.into(), &given);
        }
        let mut normed = norm(&stream, "model.norm.weight");
        // Logits are linear in it.
        scale(&mut normed, 1.0 / f64::from(by.logits_scaling));
        let head = self.tensors.get("lm_head.weight").unwrap_or(embedding);
        let weights = batch.weights.map(wide);
        let weights = weights.as_deref();
        reference::linear_cross_entropy(&normed, head, batch.targets, weights, 1.0, c.logits_soft_cap, None, h)
    }

    fn linear(
        &self,
        lora: &HashMap<ParamId, Vec<f64>>,
        x: &[f64],
        layer: usize,
        module: Projection,
        site: usize,
        draw: Option<u32>,
    ) -> Vec<f64> {
        let (n, k) = module.shape(&self.spec.arch);
        let m = x.len() / k;
        let path = self.spec.arch.module(layer, module);
        let spec = &self.spec.lora;
        let term = lora.get(&ParamId::a(path.as_str())).map(|a| {
            let (r, scale) = spec.of(&path).unwrap();
            LoraTerm { a, b: &lora[&ParamId::b(path.as_str())], r, scale: f64::from(scale) }
        });
        let factors: Option<Vec<f64>> = draw.filter(|_| spec.dropout > 0.0).map(|draw| {
            let mask = Dropout::new(self.spec.seed, (layer * 16 + site) as u32, draw, spec.dropout as f32);
            (0..m * k).map(|i| f64::from(mask.factors((i / k) as u32, (i % k / 4) as u32)[i % k % 4])).collect()
        });
        let mut y = vec![0.0; m * n];
        let bias = self.tensors.get(&self.spec.arch.bias_name(layer, module));
        let s = term.as_ref().map(|term| {
            let mut s = vec![0.0; m * term.r];
            reference::lora_down(x, factors.as_deref(), term, &mut s, k);
            s
        });
        reference::linear(
            x,
            &self.tensors[&self.spec.arch.weight_name(layer, module)],
            bias.map(Vec::as_slice),
            s.as_deref().zip(term.as_ref()),
            &mut y,
            n,
            k,
        );
        y
    }
}

fn add(x: &mut [f64], factor: f64, y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += factor * y);
}

fn scale(x: &mut [f64], factor: f64) {
    x.iter_mut().for_each(|x| *x *= factor);
}

/// Owned parts of a [`Batch`] of random documents.
pub struct Documents {
    input_ids: Vec<u32>,
    positions: Vec<u32>,
    boundaries: Vec<u32>,
    targets: Vec<i32>,
    pub weights: Option<Vec<f32>>,
}

impl Documents {
    /// Documents of the given lengths; the last token of each, and every fifth one, is not supervised.
    pub fn random(lengths: &[usize], vocab: usize, seed: u64) -> Self {
        let mut stream = RngStream::new(seed, 1 << 40);
        let input_ids: Vec<u32> = (0..lengths.iter().sum()).map(|_| stream.below(vocab as u32)).collect();
        let positions = lengths.iter().flat_map(|&len| 0..len as u32).collect();
        let mut boundaries = vec![0u32];
        let mut targets = Vec::new();
        for &len in lengths {
            let start = *boundaries.last().unwrap() as usize;
            for i in 0..len {
                let supervised = i + 1 < len && i % 5 != 4;
                targets.push(if supervised { input_ids[start + i + 1] as i32 } else { -100 });
            }
            boundaries.push((start + len) as u32);
        }
        Self { input_ids, positions, boundaries, targets, weights: None }
    }

    /// With random weights of its tokens: of either sign, a third of them 0.
    pub fn weighted(mut self, seed: u64) -> Self {
        let mut stream = RngStream::new(seed, 1 << 41);
        let mut weight = || if stream.below(3) == 0 { 0.0 } else { 3.0 * stream.uniform() - 0.5 };
        self.weights = Some(self.targets.iter().map(|_| weight()).collect());
        self
    }

    /// One document of this batch on its own.
    pub fn part(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            input_ids: self.input_ids[range.clone()].to_vec(),
            positions: self.positions[range.clone()].to_vec(),
            boundaries: vec![0, range.len() as u32],
            targets: self.targets[range.clone()].to_vec(),
            weights: self.weights.as_ref().map(|weights| weights[range].to_vec()),
        }
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch {
            input_ids: &self.input_ids,
            positions: &self.positions,
            boundaries: &self.boundaries,
            targets: &self.targets,
            weights: self.weights.as_deref(),
            adapters: None,
        }
    }
}

pub fn to_f64(lora: &HashMap<ParamId, Vec<f32>>) -> HashMap<ParamId, Vec<f64>> {
    lora.iter().map(|(id, values)| (id.clone(), wide(values))).collect()
}
