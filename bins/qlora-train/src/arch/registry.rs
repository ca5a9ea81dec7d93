//! The registry of families: a config.json goes to the one that it names.

use std::path::Path;

use serde_json::{Map, Value};

use super::untrained::{Untrained, untrained};
use super::wrapper::text_config;
use super::{
    Arch, Family, LayerKeys, Rope, config, granite, granite4, hunyuan, llama, ministral3, mistral, olmo2, olmo3,
    other_keys, qwen2, qwen3, rope,
};
use super::{gemma2, gemma3, phi3, seed_oss, smollm3};
use crate::error::Result;
use crate::files::json::{Keys, read_object};
use crate::report::status;

/// Every family that can be trained.
pub static FAMILIES: [&Family; 15] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &ministral3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &smollm3::FAMILY,
    &granite::FAMILY,
    &granite4::FAMILY,
    &seed_oss::FAMILY,
    &hunyuan::FAMILY,
    &olmo2::FAMILY,
    &olmo3::FAMILY,
    &phi3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
];

impl Family {
    /// The family that config.json names. Refused: none, or one that is not in [`FAMILIES`].
    fn of(keys: &Keys) -> Result<&'static Self> {
        let model_type = keys.text("model_type")?;
        let Some(family) = FAMILIES.into_iter().find(|family| Some(family.model_type) == model_type) else {
            let known: Vec<String> = FAMILIES.iter().map(|family| family.description()).collect();
            let mut expected = known.join(", or ");
            if let Some((name, Untrained { nearest, what })) =
                model_type.and_then(|name| Some((name, untrained(name)?)))
            {
                expected += &format!("; {name:?} {what}, the nearest of these is {nearest:?}");
            }
            return Err(keys.wrong("model_type", &expected));
        };
        let named = |list: &Vec<Value>| list.iter().all(|name| name == family.architecture) && !list.is_empty();
        if keys.get("architectures").is_some_and(|value| !value.as_array().is_some_and(named)) {
            let expected = format!("[{:?}], the one of model_type {:?}", family.architecture, family.model_type);
            return Err(keys.wrong("architectures", &expected));
        }
        Ok(family)
    }

    fn description(&self) -> String {
        format!("{:?} ({}: {})", self.model_type, self.architecture, self.models)
    }
}

impl Arch {
    /// Reads and checks a config.json, and says what keys of it are not used. Everything wrong with it is
    /// [`Error::Refused`](crate::error::Error::Refused).
    pub fn from_file(path: &Path) -> Result<Self> {
        let (arch, note) = Self::with_note(path, &read_object(path)?)?;
        if let Some(note) = note {
            status!("{note}");
        }
        Ok(arch)
    }

    /// Reads and checks a parsed config.json; `path` is what errors call it.
    pub fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self> {
        Ok(Self::with_note(path, map)?.0)
    }

    /// [`Self::from_json`] with a sentence on the keys that are not used.
    pub fn with_note(path: &Path, map: &Map<String, Value>) -> Result<(Self, Option<String>)> {
        if let Some((wrapper, text)) = text_config(path, map)? {
            let (arch, note) = Self::of_keys(&Keys::of(format!("{}: `text_config`", path.display()), &text))?;
            return Ok((Self { wrapper: Some(wrapper), ..arch }, note));
        }
        Self::of_keys(&Keys::new(path, map))
    }

    fn of_keys(keys: &Keys) -> Result<(Self, Option<String>)> {
        let family = Family::of(keys)?;
        let arch = (family.read)(keys)?;
        let note = other_keys::check(keys, family)?;
        config::check(&arch, keys)?;
        arch.check_computed(&keys.source)?;
        Ok((arch, note))
    }

    /// config.json in the spelling of transformers v5 (`rope_parameters`, `dtype`); `dtype` is torch's name of the
    /// stored type, such as "bfloat16".
    pub fn to_json(&self, dtype: &str) -> Map<String, Value> {
        let mut map = config::write(self);
        map.insert("rope_parameters".into(), Value::Object(self.rope_parameters()));
        map.insert("dtype".into(), dtype.into());
        map
    }

    fn rope_parameters(&self) -> Map<String, Value> {
        match self.family.layer_keys {
            LayerKeys::Alike => self.rope().to_json(),
            LayerKeys::ByWindow { .. } => {
                let [full, local] = self.ropes_by_window();
                Map::from_iter(
                    [(rope::FULL, full), (rope::SLIDING, local)]
                        .map(|(kind, rope)| (kind.to_owned(), Value::Object(rope.to_json()))),
                )
            }
        }
    }

    /// The rotary positions of layers without a window, and of those with one. A kind that no layer is of has the
    /// other's.
    fn ropes_by_window(&self) -> [Rope; 2] {
        let of = |windowed: bool| {
            let mut layers = self.layers.iter().filter(|layer| layer.window.is_some() == windowed);
            layers.find_map(|layer| layer.rope.clone()).unwrap_or_else(|| self.rope())
        };
        [of(false), of(true)]
    }

    /// config.json in the spelling of transformers v4 (`rope_theta`, `rope_scaling`, `torch_dtype`).
    pub fn to_json_v4(&self, dtype: &str) -> Map<String, Value> {
        let mut map = config::write(self);
        let (theta, scaling) = match self.family.layer_keys {
            LayerKeys::Alike => self.rope().to_json_v4(),
            LayerKeys::ByWindow { local_theta, .. } => {
                let [full, local] = self.ropes_by_window();
                match local_theta {
                    Some((key, _)) => _ = map.insert(key.into(), local.theta.into()),
                    // v4 has no key for it.
                    None if local.theta != full.theta => {
                        map.insert("rope_parameters".into(), Value::Object(self.rope_parameters()));
                        map.insert("torch_dtype".into(), dtype.into());
                        return map;
                    }
                    None => (),
                }
                full.to_json_v4()
            }
        };
        map.insert("rope_theta".into(), theta);
        map.insert("rope_scaling".into(), scaling);
        map.insert("torch_dtype".into(), dtype.into());
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::untrained::table;

    /// A type that became a family is read; any other is refused with its name and the nearest family, from config.json
    /// alone.
    #[test]
    fn every_other_type_is_refused_with_the_nearest_that_is_trained() {
        for (name, Untrained { nearest, what }) in table() {
            assert!(FAMILIES.iter().any(|family| family.model_type == nearest), "{name}: {nearest}");
            let map = Map::from_iter([("model_type".to_owned(), name.into())]);
            match Arch::from_json(Path::new("config.json"), &map) {
                Ok(arch) => assert_eq!(arch.family.model_type, name),
                Err(error) => {
                    let (found, hint) =
                        (format!("found {name:?}"), format!("{name:?} {what}, the nearest of these is {nearest:?}"));
                    let text = error.to_string();
                    assert!(error.is_usage() && text.contains(&found) && text.contains(&hint), "{text}");
                }
            }
        }
    }
}
