//! Modules that may be trained whole (`modules_to_save`): the embedding, the output layer and the norms; of the first
//! two also the rows of single tokens (`trainable_token_indices`).

use super::{Layer, Llama, ModelSpec, Source};
use crate::arch::{Arch, NormWeight};
use crate::backend::{Backend, HEAD_ON_HOST, LinearGroup, Operands, Residency};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::tensor::StoredType;
use crate::lora::{LoraSpec, ParamId};

fn module_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

impl ModelSpec {
    fn is_whole(&self, weight: &str) -> bool {
        self.lora.whole.contains(module_of(weight))
    }
}

impl ModelSpec {
    /// Name and shape of what is trained of the embedding or the output layer, whose weight is called `name`.
    pub(super) fn of_table(&self, name: &str) -> (ParamId, Vec<usize>) {
        let hidden = self.arch.hidden_size;
        match self.lora.tokens.get(module_of(name)) {
            Some(tokens) => (ParamId::tokens(module_of(name)), vec![tokens.len(), hidden]),
            None => (ParamId::of_weight(name), vec![self.arch.vocab_size, hidden]),
        }
    }

    /// Rows of the output layer that are trained where not all of them are.
    pub(super) fn head_rows(&self) -> usize {
        let module =
            if self.head_is_embedding() { self.arch.names.embedding_module() } else { self.arch.names.head_module() };
        self.lora.tokens.get(module).map_or(0, Vec::len)
    }

    fn head_is_embedding(&self) -> bool {
        self.arch.tie_word_embeddings && !self.lora.untied
    }

    /// True if the output layer may be elsewhere than on the device: it is the base's alone, and nothing of it is
    /// trained.
    pub fn head_may_wait(&self) -> bool {
        let (lora, names) = (&self.lora, self.arch.names);
        let is_own = |module: &str| lora.whole.contains(module) || lora.tokens.contains_key(module);
        let is_tied = self.arch.tie_word_embeddings;
        !(lora.untied || is_own(names.head_module()) || is_tied && is_own(names.embedding_module()))
    }

    /// True if the output layer stays in the files of the base, and with it an embedding of which nothing is trained.
    pub fn head_on_disk(&self) -> bool {
        self.residency_of(self.arch.num_layers) == Residency::Disk && self.head_may_wait()
    }

    /// Names of the weights that stay there then, as far as nothing of them is trained.
    pub fn tables(&self) -> Vec<&'static str> {
        let names = self.arch.names;
        if self.head_is_embedding() { vec![names.embedding] } else { vec![names.embedding, names.head] }
    }

    /// Bytes of the output layer on a GPU.
    pub fn head_bytes(&self) -> u64 {
        2 * (self.arch.vocab_size * self.arch.hidden_size) as u64
    }

    /// True if the output layer waits in host memory while it is not used.
    pub fn head_waits(&self) -> bool {
        self.residency_of(self.arch.num_layers) == Residency::Pinned && self.head_may_wait()
    }
}

impl Arch {
    /// The addend to the stored weight of a norm before it multiplies.
    pub(crate) fn norm_offset(&self) -> f32 {
        if self.norm.weight == NormWeight::OnePlus { 1.0 } else { 0.0 }
    }

    /// True if a module is a norm.
    pub(crate) fn is_norm(&self, module: &str) -> bool {
        self.find(module).is_none() && ![self.names.embedding_module(), self.names.head_module()].contains(&module)
    }
}

impl ModelSpec {
    pub(super) fn embedding<B: Backend>(&self, b: &mut B, source: &mut dyn Source) -> Result<B::Table> {
        if self.head_is_embedding() && self.head_waits() {
            return self.waiting_table(b, source, "embedding", self.arch.names.embedding);
        }
        let name = self.arch.names.embedding;
        let has_own = self.is_whole(name) || self.lora.tokens.contains_key(module_of(name));
        if self.head_on_disk() && !has_own {
            return self.table_on_disk(b, source, name, self.head_is_embedding());
        }
        // Its rows are only gathered, unless it is the output layer too.
        let residency = if self.arch.tie_word_embeddings { Residency::Device } else { Residency::Pinned };
        self.table(b, source, "embedding", name, residency)
    }

    /// `None`: the embedding serves as output layer.
    pub(super) fn head<B: Backend>(&self, b: &mut B, source: &mut dyn Source) -> Result<Option<B::Table>> {
        if self.head_is_embedding() {
            return Ok(None);
        }
        let name = self.arch.names.head;
        if self.head_on_disk() {
            return self.table_on_disk(b, source, name, true).map(Some);
        }
        match self.head_waits() {
            true => self.waiting_table(b, source, HEAD_ON_HOST, name).map(Some),
            false => self.table(b, source, "lm_head", name, Residency::Device).map(Some),
        }
    }

    fn table_on_disk<B: Backend>(
        &self,
        b: &mut B,
        source: &mut dyn Source,
        name: &str,
        is_head: bool,
    ) -> Result<B::Table> {
        let (vocab, hidden, stored) = (self.arch.vocab_size, self.arch.hidden_size, source.stored(name));
        b.table_on_disk(name, vocab, hidden, is_head, stored, &mut || source.rows_on_disk(name))
    }

    fn waiting_table<B: Backend>(
        &self,
        b: &mut B,
        source: &mut dyn Source,
        what: &'static str,
        name: &str,
    ) -> Result<B::Table> {
        let (vocab, hidden, stored) = (self.arch.vocab_size, self.arch.hidden_size, source.stored(name));
        b.waiting_table(what, vocab, hidden, self.head_is_embedding(), stored, &mut || source.read(name))
    }

    fn table<B: Backend>(
        &self,
        b: &mut B,
        source: &mut dyn Source,
        what: &'static str,
        name: &str,
        residency: Residency,
    ) -> Result<B::Table> {
        let (vocab, hidden) = (self.arch.vocab_size, self.arch.hidden_size);
        if self.is_whole(name) && self.trainable {
            return b.trained_table(what, vocab, hidden, self.states, &mut || Ok(source.whole(name)?.into_f32()));
        }
        // A base with one tensor for both stores it as the embedding.
        let base = if self.arch.tie_word_embeddings { self.arch.names.embedding } else { name };
        if let Some(tokens) = self.lora.tokens.get(module_of(name)) {
            let (stored, states) = (source.stored(base), self.trainable.then_some(self.states));
            return b.table_with_rows(what, [vocab, hidden], residency, stored, tokens, states, &mut || {
                Ok((source.read(base)?, source.token_rows(module_of(name))))
            });
        }
        let stored = if self.is_whole(name) { StoredType::F32 } else { source.stored(base) };
        b.table(what, vocab, hidden, residency, stored, &mut || match self.is_whole(name) {
            true => source.whole(name),
            false => source.read(base),
        })
    }

    /// The factors of the norm whose weight is called `name`.
    pub(super) fn norm<B: Backend>(
        &self,
        b: &mut B,
        source: &mut dyn Source,
        name: &str,
        len: usize,
    ) -> Result<B::Vector> {
        let arch = &self.arch;
        let divisor = if name == arch.names.final_norm { arch.multipliers.logits_scaling } else { 1.0 };
        let mut read = || {
            let stored = if self.is_whole(name) { source.whole(name)? } else { source.read(name)? };
            let mut weight = stored.into_f32();
            weight.iter_mut().for_each(|w| *w = (*w + arch.norm_offset()) / divisor);
            Ok(weight)
        };
        if !(self.is_whole(name) && self.trainable) {
            return b.vector("norms", len, &mut read);
        }
        if divisor != 1.0 {
            bail_usage!(
                "`modules_to_save`: {} is held divided by {divisor}, as the family divides its logits, and is not trained; \
             name other norms",
                module_of(name)
            );
        }
        b.trained_vector("norms", len, self.states, &mut read)
    }
}

/// The groups of a layer, and the weights of its norms with their names.
type Parts<'a, B> = ([&'a mut LinearGroup<B>; 4], Vec<(String, &'a mut <B as Operands>::Vector)>);

impl<B: Backend> Layer<B> {
    /// The weights of its norms, each with its name and length.
    pub(super) fn norms(&self, arch: &Arch, layer: usize) -> Vec<(String, usize, &B::Vector)> {
        let heads = arch.qk_norms().zip(self.qk_norm.as_ref());
        let heads = heads.into_iter().flat_map(|(names, [q, k])| names.into_iter().zip([q, k]));
        let mut norms: Vec<_> = heads.map(|((name, len), norm)| (arch.layer_tensor(layer, name), len, norm)).collect();
        for (names, own) in
            [(arch.names.attention_norms, &self.attention_norms), (arch.names.mlp_norms, &self.mlp_norms)]
        {
            for (name, norm) in
                names.input.zip(own.input.as_ref()).into_iter().chain(names.output.zip(own.output.as_ref()))
            {
                norms.push((arch.layer_tensor(layer, name), arch.hidden_size, norm));
            }
        }
        norms
    }

    /// Its groups in the order of [`Input::ALL`](crate::arch::Input::ALL), and the weights of its norms as
    /// [`norms`](Self::norms) has them.
    pub(super) fn parts_mut(&mut self, arch: &Arch, layer: usize) -> Parts<'_, B> {
        let heads = arch.qk_norms().zip(self.qk_norm.as_mut());
        let heads = heads.into_iter().flat_map(|(names, [q, k])| names.into_iter().zip([q, k]));
        let mut norms: Vec<_> = heads.map(|((name, _), norm)| (arch.layer_tensor(layer, name), norm)).collect();
        for (names, own) in
            [(arch.names.attention_norms, &mut self.attention_norms), (arch.names.mlp_norms, &mut self.mlp_norms)]
        {
            for (name, norm) in
                names.input.zip(own.input.as_mut()).into_iter().chain(names.output.zip(own.output.as_mut()))
            {
                norms.push((arch.layer_tensor(layer, name), norm));
            }
        }
        ([&mut self.qkv, &mut self.o, &mut self.gate_up, &mut self.down], norms)
    }
}

impl<B: Backend> Llama<B> {
    /// Values of a trainable tensor as a checkpoint stores them.
    pub fn stored_values(&self, backend: &B, id: &ParamId, param: &B::Param) -> Result<Vec<f32>> {
        let mut values = backend.param_values(param)?;
        let offset = self.stored_offset(id);
        values.iter_mut().for_each(|x| *x -= offset);
        Ok(values)
    }

    /// The addend to the stored values of a trainable tensor.
    pub fn stored_offset(&self, id: &ParamId) -> f32 {
        if self.spec.arch.is_norm(id.module()) { self.spec.arch.norm_offset() } else { 0.0 }
    }

    /// Reads the modules again that are whole in the spec of before or in that of now.
    pub(super) fn replace_whole(&mut self, b: &mut B, source: &mut dyn Source, before: &LoraSpec) -> Result<()> {
        let spec = self.spec.clone();
        let (names, changes) = (spec.arch.names, |name: &str| {
            let has =
                |lora: &LoraSpec| lora.whole.contains(module_of(name)) || lora.tokens.contains_key(module_of(name));
            has(&spec.lora) || has(before)
        });
        if changes(names.embedding) {
            self.embedding = spec.embedding(b, source)?;
        }
        if changes(names.head) || spec.lora.untied != before.untied {
            // Its memory first.
            self.head = None;
            self.head = spec.head(b, source)?;
        }
        for (layer, block) in self.layers.iter_mut().enumerate() {
            for (name, vector) in block.parts_mut(&spec.arch, layer).1.into_iter().filter(|(name, _)| changes(name)) {
                let len = spec.arch.other_modules().into_iter().find(|(module, _)| module == module_of(&name));
                let len = len.and_then(|(_, shape)| shape.first().copied());
                let len = len.ok_or_else(|| Error::Failed(format!("{name}: is no norm of the model")))?;
                *vector = spec.norm(b, source, &name, len)?;
            }
        }
        if changes(names.final_norm) {
            self.final_norm = spec.norm(b, source, names.final_norm, spec.arch.hidden_size)?;
        }
        Ok(())
    }
}
