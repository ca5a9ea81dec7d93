//! An adapter alone as GGUF, for `--lora` of llama.cpp and ADAPTER of a Modelfile.
//!
//! llama.cpp scales each pair by alpha / rank, with one alpha for the file: a pair of another scale has the difference
//! in its B.

use std::path::Path;

use super::family::GgufFamily;
use super::{
    Exported, GgufType, MODELFILE, OVERHEAD, check_room, file_stem, general, modelfile, stop_texts, tokenizer,
    write_file, write_tensor,
};
use crate::adapter::Adapter;
use crate::bail_usage;
use crate::base::{Checkpoint, Partial};
use crate::data::ChatTokenizer;
use crate::error::{Context, Result};
use crate::files::failpoint;
use crate::gguf::{Entry, Header, TensorInfo};

/// Writes the adapter of `dir` as GGUF, and a Modelfile that puts it on the base's file, to the directory `output`. Of
/// the base, config.json and the tokenizer are read, and no weights. Refused: as by
/// [`export_model`](super::export_model).
pub fn export_adapter(
    checkpoint: &Checkpoint,
    adapter: &Adapter,
    dir: &Path,
    chat: &ChatTokenizer,
    output: &Path,
    kind: GgufType,
) -> Result<Exported> {
    let (arch, source) = (checkpoint.arch(), checkpoint.dir().display().to_string());
    let shown = || dir.display().to_string();
    let family = GgufFamily::of(arch, &source)?;
    if matches!(kind, GgufType::Q8_0 | GgufType::Q4KM) {
        let kind = kind.name().to_lowercase();
        bail_usage!("--type {kind}: an adapter is written as f32, f16 or bf16: its rows are too short for blocks");
    }
    adapter.check_shapes(arch, checkpoint.base_name()).context(shown)?;
    if let Some(module) = adapter.whole_modules().context(shown)?.keys().next() {
        bail_usage!(
            "{}: holds the whole weight of {module} (`modules_to_save`), and an adapter of llama.cpp holds low-rank terms \
             only: leave --lora out, which writes the merged model",
            dir.display()
        );
    }
    if let Some(module) = adapter.token_rows().context(shown)?.keys().next() {
        bail_usage!(
            "{}: holds rows of single tokens of {module} (`trainable_token_indices`), and an adapter of llama.cpp holds \
             low-rank terms only: leave --lora out, which writes the merged model",
            dir.display()
        );
    }
    if adapter.config.use_dora {
        bail_usage!(
            "{}: is one of DoRA, and an adapter of llama.cpp holds low-rank terms only: leave --lora out, which writes the \
             merged model",
            dir.display()
        );
    }
    // The template belongs to the model's file; its faults are reported here already.
    let (_, mut warnings) = tokenizer::entries(chat.dir(), chat, arch)?;
    warnings.extend(family.notes(arch));
    let pairs = adapter.lora_pairs().context(shown)?;
    let alpha_of = |alpha: f64, r: usize| if adapter.config.use_rslora { alpha * (r as f64).sqrt() } else { alpha };
    let alphas = pairs.values().map(|pair| alpha_of(pair.alpha, pair.r));
    // llama.cpp reads an alpha of 0 as no alpha.
    let alpha = alphas.clone().find(|alpha| *alpha as f32 != 0.0).unwrap_or(1.0);

    let (mut infos, mut values) = (Vec::new(), Vec::new());
    for (module, pair) in &pairs {
        let (layer, projection) = arch.find(module).expect("its shapes were checked");
        let factor = (alpha_of(pair.alpha, pair.r) / alpha) as f32;
        let kind = kind.weights();
        for part in family.parts(arch, projection) {
            let b = &pair.b[part.rows.start * pair.r..part.rows.end * pair.r];
            let named = |factor| format!("blk.{layer}.{}.weight.lora_{factor}", part.name);
            infos.push(TensorInfo { name: named('a'), shape: vec![pair.r, pair.k_in], kind });
            values.push((pair.a.to_vec(), None));
            infos.push(TensorInfo { name: named('b'), shape: vec![part.rows.len(), pair.r], kind });
            values.push((b.iter().map(|b| b * factor).collect::<Vec<f32>>(), part.interleaved));
        }
    }
    let mut entries = general(family, checkpoint, "adapter");
    entries.push(("general.file_type".to_owned(), Entry::U32(kind.file_type())));
    entries.push(("adapter.type".to_owned(), Entry::Text("lora".to_owned())));
    entries.push(("adapter.lora.alpha".to_owned(), Entry::F32(alpha as f32)));
    let header = Header { entries, tensors: infos };
    let begin = header.to_bytes().usage_context(shown)?;
    let bytes = begin.len() as u64 + header.data_bytes()?;
    check_room(output, bytes + OVERHEAD)?;
    let file_name = format!("{}-lora-{}.gguf", file_stem(checkpoint), kind.name());
    let base_name = format!("{}-{}.gguf", file_stem(checkpoint), GgufType::as_stored(checkpoint).name());
    let modelfile = modelfile::modelfile(chat, &base_name, Some(&file_name), &stop_texts(checkpoint, chat)?);
    warnings.extend(modelfile.note);

    let partial = Partial::new(output)?;
    let sha256 = write_file(&partial, output, &file_name, &mut |to| {
        to.put(&begin)?;
        for (info, (values, interleaved)) in header.tensors.iter().zip(&values) {
            let what = || format!("{}: tensor `{}`", dir.display(), info.name);
            write_tensor(to, info, values, *interleaved).context(what)?;
            failpoint::moment("tensor");
        }
        Ok(())
    })?;
    write_file(&partial, output, MODELFILE, &mut |to| to.put(modelfile.text.as_bytes()))?;
    partial.commit(output)?;
    let (tensors, changed) = (header.tensors.len(), pairs.len());
    Ok(Exported { file: file_name, bytes, sha256, tensors, changed, warnings })
}
