//! Arguments of the commands that only read a model, as settings.

use crate::adapter::{Adapter, Recipe, is_adapter, recorded_base};
use crate::config::{Purpose, Settings};
use crate::error::Result;
use crate::refuse;
use crate::report::status;
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments shared by the commands that only read a model.
#[derive(Args)]
pub(super) struct ModelArgs {
    /// Base model: a Hugging Face directory, or a hub id in the local cache; without it, the one that the first adapter
    /// was trained on. An adapter directory stands for that adapter on its base
    #[arg(long, required_unless_present = "adapter")]
    pub model: Option<String>,
    /// Revision of a hub id
    #[arg(long)]
    pub revision: Option<String>,
    /// Adapter directory; repeated, one after the other on the same base
    #[arg(long)]
    pub adapter: Vec<PathBuf>,
    /// How the base weights are held: nf4 or none; without it, as the adapter was trained, else nf4
    #[arg(long)]
    pub quantization: Option<String>,
    /// Template of a base model that has none of its own: chatml, alpaca or a file
    #[arg(long)]
    pub chat_template: Option<String>,
    /// Where to work: auto, cpu, cuda or cuda:N
    #[arg(long)]
    pub device: Option<String>,
    /// Host memory that may be used, such as 8GiB
    #[arg(long)]
    pub host_memory: Option<String>,
    /// Memory of the GPU that may be taken in all, such as 44.4GiB
    #[arg(long)]
    pub device_memory: Option<String>,
    /// Worker threads
    #[arg(long)]
    pub threads: Option<String>,
}

impl ModelArgs {
    /// The adapters to use, one after the other.
    pub fn adapters(&self) -> Vec<PathBuf> {
        let own = self.model.iter().map(PathBuf::from).filter(|model| is_adapter(model));
        own.chain(self.adapter.iter().cloned()).collect()
    }

    /// These arguments as settings, so that every value is checked in one place.
    pub fn settings(&self) -> Result<Settings> {
        let base = match (&self.model, self.adapters().first()) {
            (Some(model), _) if !is_adapter(Path::new(model)) => model.clone(),
            (_, Some(adapter)) => {
                let base = recorded_base(adapter)?;
                status!("base: {base}, as {} records", adapter.display());
                base
            }
            (_, None) => refuse!("give the base with --model, or an adapter with --adapter"),
        };
        let values = [
            ("model", Some(&base)),
            ("revision", self.revision.as_ref()),
            ("quantization", self.quantization.as_ref()),
            ("chat_template", self.chat_template.as_ref()),
            ("device", self.device.as_ref()),
            ("host_memory", self.host_memory.as_ref()),
            ("device_memory", self.device_memory.as_ref()),
            ("threads", self.threads.as_ref()),
        ];
        let given = values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.clone())));
        let mut given: Vec<_> = given.collect();
        if self.quantization.is_none() {
            given.extend(self.recorded_recipe()?);
        }
        let settings = Settings::load(None, &given)?;
        settings.validate(Purpose::Plan)?;
        Ok(settings)
    }
}

impl ModelArgs {
    /// How the base was held when the adapters were trained. Refused: they do not agree.
    fn recorded_recipe(&self) -> Result<Vec<(String, String)>> {
        let mut recorded: Option<(PathBuf, Recipe)> = None;
        for path in self.adapters() {
            let Some(recipe) = Adapter::load(&path)?.recipe(&path.display().to_string())? else { continue };
            match &recorded {
                Some((first, other)) if *other != recipe => refuse!(
                    "{}: was trained on a base held as {recipe}, {} on one held as {other}: say with --quantization \
                     how the base is to be held, or use them one at a time",
                    path.display(),
                    first.display()
                ),
                _ => recorded = Some((path, recipe)),
            }
        }
        Ok(recorded.map_or_else(Vec::new, |(_, recipe)| recipe.settings()))
    }
}
