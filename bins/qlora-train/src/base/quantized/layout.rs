//! The layout of a checkpoint's files: shards of bounded size, the offsets known before a byte is written. So the
//! data can be written in any order, and the headers last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::base::locate::{INDEX, SINGLE};
use crate::error::{Context, Result};
use crate::files::failpoint;
use crate::files::safetensors::write_header;

/// A tensor as it will be stored.
#[derive(Clone, Debug)]
pub(super) struct NewTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl NewTensor {
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * (self.dtype.bitsize() / 8) as u64
    }
}

struct Shard {
    file_name: String,
    /// In the order of their data.
    tensors: Vec<NewTensor>,
}

pub(super) struct Layout {
    shards: Vec<Shard>,
}

impl Layout {
    /// Deals out groups of tensors in order. The tensors of a group stay in one shard: readers load a quantized weight
    /// from one file. A group larger than `max_shard_bytes` has a shard of its own.
    pub fn new(groups: Vec<Vec<NewTensor>>, max_shard_bytes: u64) -> Self {
        let (mut shards, mut held) = (vec![Vec::new()], 0u64);
        for group in groups {
            let bytes: u64 = group.iter().map(NewTensor::bytes).sum();
            if held > 0 && held.saturating_add(bytes) > max_shard_bytes {
                shards.push(Vec::new());
                held = 0;
            }
            held += bytes;
            shards.last_mut().expect("there is one").extend(group);
        }
        let of = shards.len();
        let shard = |(i, mut tensors): (usize, Vec<NewTensor>)| {
            // Large elements first: every tensor then begins at a multiple of its element's size.
            tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
            let sharded = format!("model-{:05}-of-{of:05}.safetensors", i + 1);
            Shard { file_name: if of == 1 { SINGLE.to_owned() } else { sharded }, tensors }
        };
        Self { shards: shards.into_iter().enumerate().map(shard).collect() }
    }

    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|shard| shard.file_name.as_str())
    }

    pub fn bytes(&self) -> u64 {
        self.shards.iter().flat_map(|shard| &shard.tensors).map(NewTensor::bytes).sum()
    }

    /// Makes the files in `dir`. `metadata` has the length, not the values, of what [`Writer::finish`] will write.
    pub fn create<'a>(&'a self, dir: &'a Path, metadata: &BTreeMap<String, String>) -> Result<Writer<'a>> {
        let (mut files, mut places) = (Vec::with_capacity(self.shards.len()), BTreeMap::new());
        for (i, shard) in self.shards.iter().enumerate() {
            let path = dir.join(&shard.file_name);
            let file = File::create(&path).context(|| format!("{}: cannot be written", path.display()))?;
            let mut offset = shard.header(metadata)?.len() as u64;
            for tensor in &shard.tensors {
                places.insert(tensor.name.as_str(), (i, offset));
                offset += tensor.bytes();
            }
            files.push(file);
        }
        Ok(Writer { layout: self, dir, files, places })
    }
}

impl Shard {
    fn header(&self, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let tensors = self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype, &tensor.shape[..]));
        write_header(&mut bytes, metadata, tensors).context(|| format!("{}: its header", self.file_name))?;
        Ok(bytes)
    }
}

pub(super) struct Writer<'a> {
    layout: &'a Layout,
    dir: &'a Path,
    files: Vec<File>,
    /// Tensor → (shard, position in its file).
    places: BTreeMap<&'a str, (usize, u64)>,
}

impl Writer<'_> {
    /// The whole data of one tensor.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (shard, offset) = self.places[name];
        let write = || {
            failpoint::point("write", &self.layout.shards[shard].file_name)?;
            self.files[shard].write_all_at(bytes, offset)
        };
        write().context(|| self.what(shard))
    }

    /// Writes the headers, and the index where there are several files; all are on the disk then.
    pub fn finish(self, metadata: &BTreeMap<String, String>) -> Result<()> {
        for (i, (shard, file)) in self.layout.shards.iter().zip(&self.files).enumerate() {
            let header = shard.header(metadata)?;
            let write = || file.write_all_at(&header, 0).and_then(|()| file.sync_all());
            write().context(|| self.what(i))?;
        }
        if self.layout.shards.len() > 1 {
            write_json(&self.dir.join(INDEX), &self.layout.index())?;
        }
        Ok(())
    }

    fn what(&self, shard: usize) -> String {
        format!("{}: cannot be written", self.dir.join(&self.layout.shards[shard].file_name).display())
    }
}

impl Layout {
    fn index(&self) -> Value {
        let place = |shard: &Shard| {
            let file = shard.file_name.clone();
            shard.tensors.iter().map(move |tensor| (tensor.name.clone(), file.clone())).collect::<Vec<_>>()
        };
        let weight_map: BTreeMap<String, String> = self.shards.iter().flat_map(place).collect();
        let weight_map: Map<String, Value> = weight_map.into_iter().map(|(name, file)| (name, file.into())).collect();
        json!({"metadata": {"total_size": self.bytes()}, "weight_map": weight_map})
    }
}

/// Pretty JSON, on the disk when this returns.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()
    };
    write().context(|| format!("{}: cannot be written", path.display()))
}
