//! The trainer: config → checkpoint → quantise → model → step → adapter.

#![deny(unsafe_code)]

pub mod adapter;
pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod fault;
pub mod model;
pub mod report;
pub mod train;
