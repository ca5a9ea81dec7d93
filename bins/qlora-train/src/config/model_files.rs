//! Facts about a model that settings need before it is opened, from small files of its directory.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

/// Limit on these files; a longer one is something else.
const MAX_BYTES: u64 = 256 << 20;

/// The object of a JSON file of the model; `None` where the model is no directory, or has no such file.
fn object(model: &str, file: &str) -> Option<Json> {
    let path = Path::new(model).join(file);
    let length = path.metadata().ok().filter(|metadata| metadata.is_file())?.len();
    if length > MAX_BYTES {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Count of layers of the text model in a directory, by its config.json.
pub fn layers(model: &str) -> Option<usize> {
    let config = object(model, "config.json")?;
    let text = config.get("text_config").filter(|text| text.get("num_hidden_layers").is_some());
    let layers = text.unwrap_or(&config).get("num_hidden_layers")?.as_u64()?;
    usize::try_from(layers).ok().filter(|layers| (1..=100_000).contains(layers))
}

/// The added tokens of a directory's tokenizer.json, which are found in texts as a whole.
pub fn added_tokens(model: &str) -> Option<BTreeSet<String>> {
    let tokenizer = object(model, "tokenizer.json")?;
    let tokens = tokenizer.get("added_tokens")?.as_array()?;
    Some(tokens.iter().filter_map(|token| Some(token.get("content")?.as_str()?.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_tokens_are_those_of_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().to_str().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        assert_eq!((layers(model), added_tokens(model)), (None, None));
        write("config.json", r#"{"num_hidden_layers": 30}"#);
        write("tokenizer.json", r#"{"added_tokens": [{"id": 0, "content": "<s>"}, {"id": 1, "content": "</s>"}]}"#);
        assert_eq!(layers(model), Some(30));
        assert_eq!(added_tokens(model), Some(["<s>", "</s>"].map(str::to_owned).into()));
        write("config.json", r#"{"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 34}}"#);
        assert_eq!(layers(model), Some(34), "the text model's, of one that sees");
        for wrong in ["", "[]", r#"{"num_hidden_layers": -1}"#, r#"{"num_hidden_layers": 0}"#, "{\"text_config\": 1}"] {
            write("config.json", wrong);
            assert_eq!(layers(model), None, "{wrong}");
        }
    }
}
