//! Models and data sets by their ids on the Hugging Face hub: from the local cache, else downloaded into it.
//!
//! The cache is that of Hugging Face's own client, in its layout and at its places, so that either uses what the other
//! downloaded. A file is written under another name, checked by size and hash, and only then takes its own; a download
//! that was cut goes on where it ended. Nothing is asked of the hub where the cache holds all of a commit that is named
//! outright, or where `HF_HUB_OFFLINE` is set.

mod address;
mod cache;
mod card;
mod client;
mod data_set;
mod download;
mod environment;
mod hash;
mod id;
mod infer;
mod listing;
mod model;
mod pattern;
mod splits;
mod store;

pub use data_set::{DataSetFiles, find_data_set};
pub use environment::{Environment, hub_cache};
pub use id::{DataSetId, HubId, Slice, is_hub_name, is_rather_path};
pub use model::{Need, find_model};
