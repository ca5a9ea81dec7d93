//! The trainer: config → checkpoint → quantize → model → step → adapter.

#![deny(unsafe_code)]

pub mod adapter;
pub mod arch;
pub mod backend;
pub mod base;
pub mod bench;
pub mod cli;
pub mod comm;
pub mod config;
pub mod data;
pub mod error;
pub mod export;
pub mod files;
pub mod gguf;
pub mod hub;
pub mod infer;
pub mod lint;
pub mod lora;
pub mod model;
pub mod objective;
pub mod report;
pub mod run_report;
pub mod session;
pub mod train;
