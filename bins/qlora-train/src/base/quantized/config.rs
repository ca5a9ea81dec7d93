//! `quantization_config` of config.json, as transformers' `BitsAndBytesConfig` reads and writes it.

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::bail_usage;
use crate::error::Result;
use crate::files::json::Keys;
use crate::files::tensor::StoredType;

const KEY: &str = "quantization_config";
const ORIGINAL: &str = "use the original 16-bit model";
/// Torch's names of the types that 4-bit codes may be packed into.
const STORAGE: [&str; 6] = ["uint8", "int8", "bfloat16", "float16", "float32", "float64"];
const COMPUTE: [&str; 3] = ["bfloat16", "float16", "float32"];

/// The `quantization_config` of a bitsandbytes NF4 checkpoint.
pub(crate) struct QuantizationConfig {
    /// Modules that are not quantized, as patterns; `None`: only the output layer is not.
    skip: Option<Vec<Pattern>>,
}

struct Pattern {
    text: String,
    start: Regex,
}

impl QuantizationConfig {
    /// `None` where config.json names no quantization. Every other kind of quantization is refused by its name.
    pub fn from_keys(keys: &Keys) -> Result<Option<Self>> {
        let Some(keys) = keys.object(KEY)? else { return Ok(None) };
        let four_bit = keys.flag("load_in_4bit")?.or(keys.flag("_load_in_4bit")?);
        let eight_bit = keys.flag("load_in_8bit")?.or(keys.flag("_load_in_8bit")?);
        match keys.text("quant_method")? {
            Some("bitsandbytes") => {}
            // Files of 2023 do not name the method.
            None if four_bit.is_some() || eight_bit.is_some() => {}
            _ => return Err(keys.wrong("quant_method", &format!("\"bitsandbytes\" (NF4), or none: {ORIGINAL}"))),
        }
        if eight_bit == Some(true) {
            let key = if keys.get("load_in_8bit").is_some() { "load_in_8bit" } else { "_load_in_8bit" };
            return Err(keys.wrong(key, &format!("false: 8-bit weights (int8) are not supported; {ORIGINAL}")));
        }
        if four_bit != Some(true) {
            return Err(keys.wrong("load_in_4bit", &format!("true: only NF4 is supported; {ORIGINAL}")));
        }
        match keys.text("bnb_4bit_quant_type")? {
            Some("nf4") => {}
            found => {
                let absent = if found.is_none() { " (absent, it means \"fp4\")" } else { "" };
                return Err(keys.wrong("bnb_4bit_quant_type", &format!("\"nf4\"{absent}; {ORIGINAL}")));
            }
        }
        keys.flag("bnb_4bit_use_double_quant")?;
        for (key, known) in [("bnb_4bit_compute_dtype", &COMPUTE[..]), ("bnb_4bit_quant_storage", &STORAGE)] {
            if let Some(name) = keys.text(key)?
                && !known.contains(&name.trim_start_matches("torch."))
            {
                return Err(keys.wrong(key, &format!("one of {}", known.join(", "))));
            }
        }
        Ok(Some(Self { skip: skip_list(&keys)? }))
    }

    /// True if config.json says that the linear layer `module`, such as `model.layers.0.mlp.up_proj`, is stored as it
    /// was.
    pub fn skips(&self, module: &str) -> bool {
        match &self.skip {
            None => module == "lm_head",
            Some(patterns) => patterns.iter().any(|pattern| pattern.matches(module)),
        }
    }

    /// The object that transformers writes; `skip` are names of modules, beside the output layer.
    pub fn to_json(double_quant: bool, compute: StoredType, skip: &[String]) -> Value {
        // A list takes the place of transformers' own choice, which is the output layer.
        let skip = match skip {
            [] => Value::Null,
            _ => skip.iter().map(String::as_str).chain(["lm_head"]).collect(),
        };
        json!({
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_compute_dtype": compute.torch_name(),
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": double_quant,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skip,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": true,
            "load_in_8bit": false,
            "quant_method": "bitsandbytes",
        })
    }
}

impl Pattern {
    fn new(text: &str) -> std::result::Result<Self, regex::Error> {
        // transformers also lets the pattern itself end with the dot.
        let start = text.trim_end_matches('.');
        Ok(Self { text: text.to_owned(), start: Regex::new(&format!("^(?:{start})(?:\\.|$)"))? })
    }

    /// Matches by the rules of transformers 5 (the beginning of a path up to a dot, also as a regular expression; or
    /// its end) and of 4 (whole components anywhere).
    fn matches(&self, module: &str) -> bool {
        let text = &self.text;
        let within = format!(".{module}.");
        self.start.is_match(module) || module.ends_with(text.as_str()) || within.contains(&format!(".{text}."))
    }
}

fn skip_list(keys: &Keys) -> Result<Option<Vec<Pattern>>> {
    const KEY: &str = "llm_int8_skip_modules";
    let Some(value) = keys.get(KEY) else { return Ok(None) };
    let names = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let Some(names) = names else { return Err(keys.wrong(KEY, "a list of modules' names, or null")) };
    let mut patterns = Vec::with_capacity(names.len());
    for name in names {
        match Pattern::new(name) {
            Ok(pattern) if !name.is_empty() => patterns.push(pattern),
            _ => {
                bail_usage!("{}: key `{KEY}`: found {name:?}, expected a module's name or a pattern of it", keys.source)
            }
        }
    }
    Ok(Some(patterns))
}

/// The modules, of all `modules`, that `--llm-int8-skip-modules` names; each entry has to match one.
pub(super) fn skipped<'a>(entries: &[String], modules: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<String>> {
    let mut patterns = Vec::with_capacity(entries.len());
    for entry in entries {
        let pattern = Pattern::new(entry).ok().filter(|_| !entry.is_empty());
        match pattern.filter(|pattern| entry == "lm_head" || modules.clone().any(|module| pattern.matches(module))) {
            Some(pattern) => patterns.push(pattern),
            None => bail_usage!(
                "llm_int8_skip_modules: found {entry:?}, expected the name, or the beginning or end of the name, of a \
                 linear layer, such as `down_proj` or `model.layers.0`"
            ),
        }
    }
    let skips = |module: &&str| patterns.iter().any(|pattern| pattern.matches(module));
    Ok(modules.filter(skips).map(str::to_owned).collect())
}

/// config.json of the quantized model: as it was, with the quantization. A path of this machine does not go with it,
/// nor a tie of the output layer that the files do not keep.
pub(super) fn quantized_config(original: &Map<String, Value>, quantization: Value, tied: bool) -> Map<String, Value> {
    let mut config = original.clone();
    if let Some(tie) = config.get_mut("tie_word_embeddings").filter(|_| !tied) {
        *tie = false.into();
    }
    let hub_id = |name: &Value| name.as_str().is_some_and(crate::hub::is_hub_name);
    if config.get("_name_or_path").is_some_and(|name| !hub_id(name)) {
        config.shift_remove("_name_or_path");
    }
    config.insert(KEY.to_owned(), quantization);
    config
}

/// config.json of a model in 16 bits that is written from `original`, which may be quantized.
pub(super) fn dense_config(original: &Map<String, Value>, tied: bool) -> Map<String, Value> {
    let mut config = quantized_config(original, Value::Null, tied);
    config.shift_remove(KEY);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_beginning_an_end_or_a_component_of_a_path() {
        let matches = |pattern: &str, module: &str| Pattern::new(pattern).unwrap().matches(module);
        let module = "model.layers.1.mlp.down_proj";
        for pattern in
            ["model.layers.1", "model.layers.1.", "down_proj", "mlp.down_proj", module, "mlp", "model.layers.*"]
        {
            assert!(matches(pattern, module), "{pattern}");
        }
        for pattern in ["model.layers.11", "lm_head", "up_proj", "mlp.down", "model.layers.[23]", "layers.11"] {
            assert!(!matches(pattern, module), "{pattern}");
        }
        assert!(!matches("model.layers.1", "model.layers.11.mlp.down_proj"));
        assert!(!matches("mlp.gate", "model.layers.1.mlp.gate_proj"));
        assert!(Pattern::new("(").is_err());
    }

    #[test]
    fn a_path_of_this_machine_is_left_out_and_a_hub_id_is_kept() {
        let config = |name: &str| Map::from_iter([("_name_or_path".to_owned(), Value::from(name))]);
        let of = |name: &str| quantized_config(&config(name), Value::Null, false).get("_name_or_path").cloned();
        assert_eq!(of("/home/me/llama"), None);
        assert_eq!(of("org/name"), Some("org/name".into()));
    }
}
