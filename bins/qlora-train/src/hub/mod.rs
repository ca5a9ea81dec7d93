//! Models and data sets by their ids on the Hugging Face hub, from the local cache or downloaded into it.
//!
//! The cache is that of Hugging Face's own client, in its layout and at its places, so that either uses what the other
//! downloaded. A file is written under another name, checked by size and hash, and only then takes its own; an
//! interrupted download resumes where it ended. The hub is not contacted if the cache holds all of an explicitly named
//! commit, or if `HF_HUB_OFFLINE` is set.
//!
//! Adapters go the other way, as commits.

mod address;
mod cache;
mod card;
mod client;
mod commits;
mod data_set;
mod download;
mod environment;
#[doc(hidden)]
pub mod fuzzing;
mod hash;
mod id;
mod infer;
mod license;
mod listing;
mod model;
mod model_license;
mod origin;
mod pattern;
mod splits;
mod store;
mod upload;

pub use card::has_fields;
pub use commits::{HubCommit, moved_since};
pub use data_set::{DataSetFiles, find_data_set};
pub use environment::{Environment, hub_cache};
pub use id::{DataSetId, HubId, Slice, is_hub_name, is_rather_path};
pub use license::License;
pub use model::{Need, find_model};
pub use model_license::license_of;
pub use origin::{DataSetFile, data_set_of};
pub use upload::{FileState, LocalFile, Pushed, Upload, push};
