//! The use of an adapter: lines for programs that load it.

use super::markdown::code;
use super::training::Training;
use crate::adapter::AdapterConfig;
use crate::adapter::engines::{not_plain, vllm_rank_flag};
use crate::files::shell;

/// Placeholder for the adapter.
const ADAPTER: &str = "ADAPTER";
/// Placeholder for the directory of a base that is not on the hub.
const BASE: &str = "BASE";

/// `tokenizer`: the adapter's own lies beside it.
pub(super) fn usage(
    config: &AdapterConfig,
    base: Option<&str>,
    training: Option<&Training>,
    tokenizer: bool,
) -> String {
    let name = base.unwrap_or(BASE);
    let revision = base.and(config.revision.as_deref()).filter(|revision| *revision != "main");
    let of_base = if base.is_some() { "" } else { "`BASE` stands for the directory of the base. " };
    let mut text = format!(
        "\n## Use\n\n{of_base}`{ADAPTER}` stands for the directory of this adapter, or in Python and for vLLM for its \
         id on the hub; `hf download ID --local-dir {ADAPTER}` makes the directory.\n"
    );
    let mut block =
        |title: &str, language: &str, lines: &str| text += &format!("\n{title}\n\n{}", code(language, lines));
    block("PEFT:", "python", &peft(config, name, revision, tokenizer));
    block("transformers alone:", "python", &transformers(config, name, revision));
    match not_plain(config) {
        None => {
            let at = revision.map_or(String::new(), |revision| format!(" --revision {}", shell::quoted(revision)));
            let rank = vllm_rank_flag(config.r).unwrap_or_default();
            let name = shell::quoted(name);
            block(
                "vLLM:",
                "sh",
                &format!("vllm serve {name}{at} --enable-lora{rank} --lora-modules adapter={ADAPTER}"),
            );
        }
        Some(what) => {
            let title =
                format!("vLLM, which does not serve {what}, so that the adapter is merged into its base first:");
            let merge = format!("qlora-train merge {}--adapter {ADAPTER} --output-dir merged", of_model(base));
            block(&title, "sh", &format!("{merge}\nvllm serve merged"));
        }
    }
    // It is not known whether llama.cpp knows a foreign base.
    if training.is_none_or(|training| training.gguf) {
        let export =
            format!("qlora-train export gguf {}--adapter {ADAPTER} --output-dir gguf --type q4_k_m", of_model(base));
        block("Ollama:", "sh", &format!("{export}\nollama create my-model -f gguf/Modelfile\nollama run my-model"));
    }
    text
}

/// The adapter knows a base of the hub.
fn of_model(base: Option<&str>) -> String {
    if base.is_some() { String::new() } else { format!("--model {BASE} ") }
}

/// A text in Python, in quotes.
fn python(text: &str) -> String {
    // For the texts that stand here, JSON is Python.
    serde_json::Value::from(text).to_string()
}

/// The class of the base in transformers, which is another where the text model is a part of it.
fn class(config: &AdapterConfig) -> &'static str {
    if config.wrapped { "AutoModelForImageTextToText" } else { "AutoModelForCausalLM" }
}

fn from_pretrained(config: &AdapterConfig, name: &str, revision: Option<&str>) -> String {
    let at = revision.map_or(String::new(), |revision| format!(", revision={}", python(revision)));
    format!("{}.from_pretrained({}{at})", class(config), python(name))
}

fn peft(config: &AdapterConfig, name: &str, revision: Option<&str>, tokenizer: bool) -> String {
    let class = class(config);
    let tokenizer = if tokenizer { ADAPTER } else { name };
    format!(
        "from peft import PeftModel\nfrom transformers import {class}, AutoTokenizer\n\n\
         base = {}\nmodel = PeftModel.from_pretrained(base, {})\ntokenizer = AutoTokenizer.from_pretrained({})",
        from_pretrained(config, name, revision),
        python(ADAPTER),
        python(tokenizer)
    )
}

fn transformers(config: &AdapterConfig, name: &str, revision: Option<&str>) -> String {
    format!(
        "from transformers import {}\n\nmodel = {}\nmodel.load_adapter({})",
        class(config),
        from_pretrained(config, name, revision),
        python(ADAPTER)
    )
}
