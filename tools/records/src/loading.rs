//! `benches/records/loading/`: layers in 16 bits that a GPU and its host read and quantized, by the bundle's stage
//! `loading`. The stage fails where the two differ.

use crate::folder::json_files_if_there;
use crate::format::positive;
use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loading {
    /// UTC, for example "2025-01-31T23:59:00Z"
    pub date: String,
    pub gpu: String,
    /// For example "4 layers of llama-3-8b"
    pub model: String,
    /// Bytes of the weights in 16 bits
    pub stored_bytes: u64,
    /// Seconds of reading and quantizing all of them, from the files to the GPU's memory
    pub device_seconds: f64,
    /// Seconds of reading and quantizing them by the host's processor
    pub host_seconds: f64,
}

/// All of them, oldest first. An error names the file and what is wrong with it.
pub fn read(dir: &Path) -> Result<Vec<Loading>> {
    let mut all = Vec::new();
    for path in json_files_if_there(dir)? {
        let shown = path.display();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
        let loading: Loading =
            serde_json::from_str(&text).with_context(|| format!("{shown} is not a record of loading"))?;
        let seconds = [("device_seconds", loading.device_seconds), ("host_seconds", loading.host_seconds)];
        for (what, value) in seconds {
            positive(what, value).map_err(|problem| anyhow!("{shown}: {problem}"))?;
        }
        all.push(loading);
    }
    all.sort_by(|a, b| a.date.cmp(&b.date));
    Ok(all)
}

/// A line of the newest of each GPU; nothing where there are none.
pub fn lines(all: &[Loading]) -> String {
    let mut text = String::new();
    for (index, loading) in all.iter().enumerate() {
        let Loading { date, gpu, model, stored_bytes, device_seconds, host_seconds } = loading;
        if all[index + 1..].iter().any(|newer| newer.gpu == *gpu) {
            continue;
        }
        let speed = |seconds: &f64| *stored_bytes as f64 / 1e9 / seconds;
        let _ = writeln!(
            text,
            "\nLoading {model} in bf16 on an {gpu} ({date}): read and quantized at {:.2} GB/s by the GPU, {:.2} GB/s by its \
             host, to the same values.",
            speed(device_seconds),
            speed(host_seconds)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_gpu_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, date: &str, gpu: &str, device: f64| {
            let value = serde_json::json!({
                "date": date, "gpu": gpu, "model": "4 layers of llama-3-8b", "stored_bytes": 2_000_000_000u64,
                "device_seconds": device, "host_seconds": 4.0,
            });
            fs::write(dir.path().join(name), value.to_string()).unwrap();
        };
        assert_eq!(lines(&read(&dir.path().join("none")).unwrap()), "");
        put("b.json", "2025-01-02T00:00:00Z", "NVIDIA H200", 0.5);
        put("a.json", "2025-01-01T00:00:00Z", "NVIDIA H200", 1.0);
        put("c.json", "2025-01-01T00:00:00Z", "NVIDIA L40S", 0.8);
        let text = lines(&read(dir.path()).unwrap());
        assert!(
            text.contains("on an NVIDIA H200 (2025-01-02T00:00:00Z): read and quantized at 4.00 GB/s by the GPU, 0.50")
        );
        assert!(text.contains("NVIDIA L40S") && text.contains("2.50 GB/s by the GPU"), "{text}");
        assert_eq!(text.matches("Loading ").count(), 2, "{text}");
        put("bad.json", "2025-01-03T00:00:00Z", "NVIDIA H200", 0.0);
        let error = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(error.contains("bad.json") && error.contains("device_seconds"), "{error}");
    }
}
