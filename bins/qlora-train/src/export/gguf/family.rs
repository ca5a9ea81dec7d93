//! Families of models as llama.cpp knows them: the architecture's name, its metadata, the names and the order of its
//! tensors.

use crate::arch::{Arch, NormWeight, Projection, Rope, RopeScaling};
use crate::bail_usage;
use crate::error::Result;
use crate::gguf::{Entries, Entry};
use std::ops::Range;

/// An architecture of llama.cpp for the models of a family.
pub(super) struct GgufFamily {
    /// `model_type` of config.json
    model_type: &'static str,
    /// `general.architecture`
    pub architecture: &'static str,
    /// Rotary positions rotate neighboring rows of a head, not its halves.
    interleaved: bool,
    /// Name of the norm before the MLP.
    ffn_norm: &'static str,
    /// Projections whose biases it adds.
    biases: &'static [Projection],
    /// It divides the frequencies by `rope_freqs.weight`.
    rope_factors: bool,
    /// The heads together may have another width than the model.
    wide_heads: bool,
    /// Rotary positions of layers with a window, where it has such layers.
    windowed: Option<Windowed>,
    /// Gate and up, which are one tensor here, are two there.
    splits_gate_up: bool,
}

/// Rotary positions of layers with a window. Their scaling is the default one.
#[derive(Clone, Copy, PartialEq)]
enum Windowed {
    /// The theta of the other layers
    SameTheta,
    /// A theta of their own
    OwnTheta,
}

const QKV: &[Projection] = &[Projection::Q, Projection::K, Projection::V];

static FAMILIES: [GgufFamily; 14] = [
    GgufFamily::llama("llama", "llama"),
    GgufFamily::llama("mistral", "llama"),
    GgufFamily { biases: &[], rope_factors: false, ..GgufFamily::llama("ministral3", "mistral3") },
    GgufFamily::llama("granite", "granite"),
    GgufFamily { splits_gate_up: true, ..GgufFamily::llama("granitemoehybrid", "granite") },
    GgufFamily { biases: QKV, rope_factors: false, ..GgufFamily::llama("smollm3", "smollm3") },
    GgufFamily { wide_heads: false, ..GgufFamily::qwen("qwen2", "qwen2") },
    GgufFamily::qwen("qwen3", "qwen3"),
    GgufFamily { ffn_norm: "post_attention_norm", ..GgufFamily::qwen("seed_oss", "seed_oss") },
    GgufFamily { biases: &[], wide_heads: false, ..GgufFamily::qwen("olmo2", "olmo2") },
    GgufFamily {
        biases: &[],
        wide_heads: false,
        windowed: Some(Windowed::SameTheta),
        ..GgufFamily::qwen("olmo3", "olmo2")
    },
    GgufFamily { biases: &[], wide_heads: false, ..GgufFamily::qwen("phi3", "phi3") },
    GgufFamily { biases: &[], windowed: Some(Windowed::SameTheta), ..GgufFamily::qwen("gemma2", "gemma2") },
    GgufFamily { biases: &[], windowed: Some(Windowed::OwnTheta), ..GgufFamily::qwen("gemma3_text", "gemma3") },
];

/// Layers that SmolLM3 of llama.cpp does not rotate: each of this number.
const SMOLLM3_INTERVAL: usize = 4;
/// Layers of the one Gemma 2 and the one Gemma 3 whose scores llama.cpp divides by the root of hidden size / heads.
const GEMMA2_27B_LAYERS: usize = 46;
const GEMMA3_27B_LAYERS: usize = 62;

/// A tensor of a GGUF file of a model.
pub(super) struct Named {
    pub name: String,
    /// Name in the checkpoint of the tensor whose rows it is, from `first_row` on
    pub source: String,
    pub first_row: usize,
    /// Outermost first
    pub shape: Vec<usize>,
    /// Layer and projection of a weight or a bias.
    pub projection: Option<(usize, Projection)>,
    /// Rows of a head, where the rows of each head are interleaved.
    pub interleaved: Option<usize>,
    /// 1 is added to its values: a norm that llama.cpp multiplies by the values in the file.
    pub one_plus: bool,
}

/// A projection, or rows of it, as a module of a layer in the file.
pub(super) struct Part {
    pub name: &'static str,
    /// Rows of a head, where the rows of each head are interleaved.
    pub interleaved: Option<usize>,
    pub rows: Range<usize>,
}

/// Factors by which frequencies are divided, as a tensor of the file.
pub(super) struct RopeFactors {
    pub name: &'static str,
    pub values: Vec<f32>,
}

impl Named {
    /// True if it is the output layer, or the embedding that is it too.
    pub fn is_output(&self, arch: &Arch) -> bool {
        self.source == arch.names.head || (arch.tie_word_embeddings && self.source == arch.names.embedding)
    }
}

impl GgufFamily {
    const fn llama(model_type: &'static str, architecture: &'static str) -> Self {
        Self {
            model_type,
            architecture,
            interleaved: true,
            ffn_norm: "ffn_norm",
            biases: &Projection::ALL,
            rope_factors: true,
            wide_heads: true,
            windowed: None,
            splits_gate_up: false,
        }
    }

    const fn qwen(model_type: &'static str, architecture: &'static str) -> Self {
        Self { interleaved: false, biases: QKV, rope_factors: false, ..Self::llama(model_type, architecture) }
    }

    /// The family of a model. Refused: a family that llama.cpp does not know, and settings that it computes
    /// differently.
    pub fn of(arch: &Arch, source: &str) -> Result<&'static Self> {
        let model_type = arch.family.model_type;
        let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
            let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
            bail_usage!(
                "{source}: a model of type {model_type:?} cannot be written as GGUF, expected {}",
                known.join(", ")
            );
        };
        if let Some(what) = family.not_computed(arch) {
            bail_usage!(
                "{source}: llama.cpp computes its architecture {:?} without {what}, so the model would answer \
                 otherwise; serve the 16-bit model that `merge` writes",
                family.architecture
            );
        }
        Ok(family)
    }

    fn not_computed(&self, arch: &Arch) -> Option<String> {
        if let Some(projection) = arch.biases.iter().find(|projection| !self.biases.contains(projection)) {
            return Some(format!("the bias of {}", arch.names.short(*projection)));
        }
        let rope = full_rope(arch);
        let scaling = &rope.scaling;
        if matches!(scaling, RopeScaling::Llama3 { .. }) && !self.rope_factors {
            return Some("rotary positions of type \"llama3\"".to_owned());
        }
        if matches!(scaling, RopeScaling::Yarn { truncate: false, .. }) {
            return Some("YaRN whose blend is not rounded to whole indices (`truncate: false`)".to_owned());
        }
        if !self.wide_heads && arch.q_dim() != arch.hidden_size {
            return Some("heads that are together of another width than the model".to_owned());
        }
        let rotated = |layer: usize| arch.layer(layer).rope.is_some();
        let expected = |layer: usize| self.model_type != "smollm3" || !(layer + 1).is_multiple_of(SMOLLM3_INTERVAL);
        if (0..arch.num_layers).any(|layer| rotated(layer) != expected(layer)) {
            return Some("the list of layers that are not rotated".to_owned());
        }
        if self.architecture == "olmo2" && arch.tie_word_embeddings {
            return Some("an output layer that is the embedding".to_owned());
        }
        if self.architecture == "gemma2" && !arch.tie_word_embeddings {
            return Some("an output layer that is not the embedding".to_owned());
        }
        let layers_of_27b = match self.architecture {
            "gemma2" => Some(GEMMA2_27B_LAYERS),
            "gemma3" => Some(GEMMA3_27B_LAYERS),
            _ => None,
        };
        if layers_of_27b.is_some_and(|layers| !has_gemma_scale(arch, layers)) {
            return Some("a scale of attention's scores that is not its own (`query_pre_attn_scalar`)".to_owned());
        }
        let caps = [arch.attention_soft_cap, arch.logits_soft_cap].map(|cap| cap.is_some());
        if caps != [self.architecture == "gemma2"; 2] {
            return Some("these soft caps (`attn_logit_softcapping`, `final_logit_softcapping`)".to_owned());
        }
        let slides = |layer: usize| arch.layer(layer).window.is_some();
        if self.architecture == "gemma2" && (0..arch.num_layers).any(|layer| slides(layer) != layer.is_multiple_of(2)) {
            return Some("the list of layers that have a window".to_owned());
        }
        self.other_rope(arch, &rope)
    }

    /// Rotary positions of a layer that are neither `full` nor those of [`Windowed`].
    fn other_rope(&self, arch: &Arch, full: &Rope) -> Option<String> {
        let as_written = |layer: usize| {
            let layer = arch.layer(layer);
            let Some(rope) = &layer.rope else { return true };
            match self.windowed.filter(|_| layer.window.is_some()) {
                Some(Windowed::SameTheta) => *rope == Rope::new(full.theta, RopeScaling::Default),
                Some(Windowed::OwnTheta) => *rope == Rope::new(rope.theta, RopeScaling::Default),
                None => rope == full,
            }
        };
        match (0..arch.num_layers).all(as_written) {
            true => None,
            false => Some("these kinds of rotary positions".to_owned()),
        }
    }

    /// Sentences on what llama.cpp computes differently beyond some length.
    pub fn notes(&self, arch: &Arch) -> Vec<String> {
        let mut notes = Vec::new();
        let window = (0..arch.num_layers).filter_map(|layer| arch.layer(layer).window).min();
        if let Some(window) = window.filter(|&n| self.windowed.is_none() && n < arch.max_position_embeddings) {
            notes.push(format!(
                "llama.cpp has no window of attention for its architecture {:?}: texts of more than {window} tokens are \
                 answered otherwise than here",
                self.architecture
            ));
        }
        if let RopeScaling::LongRope { original_max_position_embeddings: original, .. } = full_rope(arch).scaling {
            notes.push(format!(
                "llama.cpp takes the long factors of LongRoPE for every text where its context (--ctx-size, num_ctx) is \
                 above {original} tokens, and the short ones where it is not; here the length of the text decides"
            ));
        }
        notes
    }

    /// Sizes and numbers of the model.
    pub fn metadata(&self, arch: &Arch) -> Entries {
        let size = |key: &'static str, value: usize| (key, Entry::U32(u32::try_from(value).unwrap_or(u32::MAX)));
        let rope = full_rope(arch);
        let mut entries = vec![
            size("block_count", arch.num_layers),
            size("context_length", arch.max_position_embeddings),
            size("embedding_length", arch.hidden_size),
            size("feed_forward_length", arch.intermediate_size),
            size("vocab_size", arch.vocab_size),
            size("attention.head_count", arch.num_heads),
            size("attention.head_count_kv", arch.num_kv_heads),
            size("attention.key_length", arch.head_dim),
            size("attention.value_length", arch.head_dim),
            ("attention.layer_norm_rms_epsilon", Entry::F32(arch.norm.eps)),
            size("rope.dimension_count", rope.rotary_dim(arch.head_dim)),
            ("rope.freq_base", Entry::F32(rope.theta as f32)),
        ];
        entries.extend(scaling(rope));
        entries.extend(self.windows(arch));
        for (key, cap) in
            [("attn_logit_softcapping", arch.attention_soft_cap), ("final_logit_softcapping", arch.logits_soft_cap)]
        {
            entries.extend(cap.map(|cap| (key, Entry::F32(cap))));
        }
        if self.architecture == "granite" {
            let multipliers = arch.multipliers;
            let attention = multipliers.attention.unwrap_or_else(|| 1.0 / (arch.head_dim as f32).sqrt());
            entries.extend([
                ("attention.scale", Entry::F32(attention)),
                ("embedding_scale", Entry::F32(multipliers.embedding)),
                ("residual_scale", Entry::F32(multipliers.residual)),
                ("logit_scale", Entry::F32(multipliers.logits_scaling)),
            ]);
        }
        entries.into_iter().map(|(key, entry)| (format!("{}.{key}", self.architecture), entry)).collect()
    }

    /// Metadata for windows: their width, the layers that have one, and the theta there.
    fn windows(&self, arch: &Arch) -> Vec<(&'static str, Entry)> {
        let layers = || (0..arch.num_layers).map(|layer| arch.layer(layer));
        let first = layers().find(|layer| layer.window.is_some());
        let width = first.and_then(|layer| layer.window).unwrap_or(0);
        let width = ("attention.sliding_window", Entry::U32(u32::try_from(width).unwrap_or(u32::MAX)));
        let Some((first, windowed)) = first.zip(self.windowed) else {
            // Phi-3 of llama.cpp looks for the key, and takes 0 for none.
            return if self.architecture == "phi3" { vec![width] } else { Vec::new() };
        };
        // Gemma 2 of llama.cpp has a window on every second layer.
        if self.architecture == "gemma2" {
            return vec![width];
        }
        let pattern = layers().map(|layer| layer.window.is_some()).collect();
        let mut entries = vec![width, ("attention.sliding_window_pattern", Entry::Bools(pattern))];
        if let (Windowed::OwnTheta, Some(rope)) = (windowed, &first.rope) {
            entries.push(("rope.freq_base_swa", Entry::F32(rope.theta as f32)));
        }
        entries
    }

    /// The factors by which frequencies are divided, one for two elements that are rotated: those of `llama3`, or the
    /// long and the short ones of LongRoPE.
    pub fn rope_factors(&self, arch: &Arch) -> Vec<RopeFactors> {
        let Rope { theta, scaling, .. } = full_rope(arch);
        match &scaling {
            RopeScaling::Llama3 { .. } => {
                let frequency = |i: usize, scaling| {
                    qlora_kernels::rope::frequency(i, arch.head_dim, theta, scaling, arch.max_position_embeddings)
                };
                let factor = |i| (frequency(i, &RopeScaling::Default) / frequency(i, &scaling)) as f32;
                vec![RopeFactors { name: "rope_freqs.weight", values: (0..arch.head_dim / 2).map(factor).collect() }]
            }
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                let named = |name, factors: &[f32]| RopeFactors { name, values: factors.to_vec() };
                vec![named("rope_factors_long.weight", long_factor), named("rope_factors_short.weight", short_factor)]
            }
            _ => Vec::new(),
        }
    }

    /// The tensors of the model, in the order of [`Arch::tensors`].
    pub fn tensors(&self, arch: &Arch) -> Vec<Named> {
        let named = |(source, shape): (String, Vec<usize>)| {
            if let (_, Some((layer, projection))) = self.name(arch, &source) {
                let end = &source[source.rfind('.').expect("a weight or a bias of a module")..];
                let named = |part: Part| Named {
                    name: format!("blk.{layer}.{}{end}", part.name),
                    source: source.clone(),
                    first_row: part.rows.start,
                    shape: std::iter::once(part.rows.len()).chain(shape[1..].iter().copied()).collect(),
                    projection: Some((layer, projection)),
                    interleaved: part.interleaved,
                    one_plus: false,
                };
                return self.parts(arch, projection).into_iter().map(named).collect();
            }
            let (name, _) = self.name(arch, &source);
            let one_plus = arch.norm.weight == NormWeight::OnePlus && shape.len() == 1;
            vec![Named { name, source, first_row: 0, shape, projection: None, interleaved: None, one_plus }]
        };
        arch.tensors().into_iter().flat_map(named).collect()
    }

    /// The tensors of a projection in the file, its rows in order.
    pub fn parts(&self, arch: &Arch, projection: Projection) -> Vec<Part> {
        let rows = projection.shape(arch).0;
        if projection == Projection::GateUp && self.splits_gate_up {
            let half = |name, rows| Part { name, interleaved: None, rows };
            return vec![half("ffn_gate", 0..rows / 2), half("ffn_up", rows / 2..rows)];
        }
        vec![Part { name: part(projection), interleaved: self.interleaved_rows(arch, projection), rows: 0..rows }]
    }

    fn interleaved_rows(&self, arch: &Arch, projection: Projection) -> Option<usize> {
        let rotated = matches!(projection, Projection::Q | Projection::K);
        (rotated && self.interleaved).then_some(arch.head_dim)
    }

    fn name(&self, arch: &Arch, source: &str) -> (String, Option<(usize, Projection)>) {
        let names = arch.names;
        for (own, name) in [(names.embedding, "token_embd"), (names.final_norm, "output_norm"), (names.head, "output")]
        {
            if source == own {
                return (format!("{name}.weight"), None);
            }
        }
        let below = source.strip_prefix(names.layers).and_then(|rest| rest.strip_prefix('.'));
        let (layer, rest) = below.and_then(|rest| rest.split_once('.')).expect("the other tensors are of a layer");
        let norms = [
            (names.attention_norms.input, "attn_norm"),
            (names.attention_norms.output, "post_attention_norm"),
            (names.mlp_norms.input, self.ffn_norm),
            (names.mlp_norms.output, "post_ffw_norm"),
            (Some(names.q_norm), "attn_q_norm"),
            (Some(names.k_norm), "attn_k_norm"),
        ];
        if let Some((_, name)) = norms.iter().find(|(own, _)| *own == Some(rest)) {
            return (format!("blk.{layer}.{name}.weight"), None);
        }
        let (path, end) = rest.rsplit_once('.').expect("a weight or a bias of a module");
        let (projection, _) = names.projections.iter().find(|(_, own)| *own == path).expect("a family names them all");
        let number = layer.parse().expect("a family numbers its layers");
        (format!("blk.{layer}.{}.{end}", part(*projection)), Some((number, *projection)))
    }
}

fn part(projection: Projection) -> &'static str {
    match projection {
        Projection::Q => "attn_q",
        Projection::K => "attn_k",
        Projection::V => "attn_v",
        Projection::Qkv => "attn_qkv",
        Projection::O => "attn_output",
        Projection::Gate => "ffn_gate",
        Projection::Up | Projection::GateUp => "ffn_up",
        Projection::Down => "ffn_down",
    }
}

/// True if attention's scores have the scale that llama.cpp uses for a Gemma with this number of layers.
fn has_gemma_scale(arch: &Arch, layers_of_27b: usize) -> bool {
    let root = |width: usize| (width as f64).powf(-0.5) as f32;
    let own = if arch.num_layers == layers_of_27b { arch.hidden_size / arch.num_heads } else { arch.head_dim };
    arch.multipliers.attention.unwrap_or(root(arch.head_dim)) == root(own)
}

/// Rotary positions of layers without a window, or of all.
fn full_rope(arch: &Arch) -> Rope {
    let full = arch.layers.iter().find(|layer| layer.window.is_none() && layer.rope.is_some());
    full.and_then(|layer| layer.rope.clone()).unwrap_or_else(|| arch.rope())
}

fn scaling(rope: Rope) -> Vec<(&'static str, Entry)> {
    let kind = |kind: &str| ("rope.scaling.type", Entry::Text(kind.to_owned()));
    let number = |key: &'static str, value: f64| (key, Entry::F32(value as f32));
    match rope.scaling {
        // llama3 is a tensor of factors.
        RopeScaling::Default | RopeScaling::Llama3 { .. } => Vec::new(),
        RopeScaling::LongRope { attention_factor, original_max_position_embeddings, .. } => vec![
            (
                "rope.scaling.original_context_length",
                Entry::U32(u32::try_from(original_max_position_embeddings).unwrap_or(u32::MAX)),
            ),
            number("rope.scaling.attn_factor", attention_factor),
        ],
        RopeScaling::Linear { factor } => vec![kind("linear"), number("rope.scaling.factor", factor)],
        RopeScaling::Yarn {
            factor, beta_fast, beta_slow, original_max_position_embeddings, attention_factor, ..
        } => {
            let original = u32::try_from(original_max_position_embeddings).unwrap_or(u32::MAX);
            // The factor that llama.cpp itself multiplies by.
            let own = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            vec![
                kind("yarn"),
                number("rope.scaling.factor", factor),
                ("rope.scaling.original_context_length", Entry::U32(original)),
                number("rope.scaling.attn_factor", attention_factor / own),
                number("rope.scaling.yarn_beta_fast", beta_fast),
                number("rope.scaling.yarn_beta_slow", beta_slow),
            ]
        }
    }
}
