//! Frozen weights, loaded once.

use super::{DiskTraffic, LinearGroup, Operands, StateFormat};
use crate::bail_usage;
use crate::base::{Nf4OnDisk, RowsOnDisk};
use crate::error::{Error, Result};
use crate::files::tensor::{HostTensor, StoredType, TensorData, WeightSource};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::rope::RopeTable;

/// Format of frozen linear weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    Nf4 {
        block_size: usize,
        double_quant: bool,
    },
    /// 16-bit weights as they are in the checkpoint.
    None,
}

impl Quantization {
    /// Blocks of 64, whose absmax are quantized as well
    pub const NF4: Self = Self::Nf4 { block_size: 64, double_quant: true };
}

/// Place of a frozen weight while it is not computed with. A device that shares the host's memory has one place only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    #[default]
    Device,
    /// Pinned host memory
    Pinned,
    /// The checkpoint's files: of a linear weight that they store in NF4, or an output layer that they do not
    Disk,
}

/// Name of the linear weights of layers that are [`Residency::Pinned`], in the plan's lines.
pub const WEIGHTS_ON_HOST: &str = "layers' weights in host memory";

/// Name of an output layer that waits in pinned host memory and is no embedding, in the plan's lines.
pub const HEAD_ON_HOST: &str = "lm_head in host memory";

/// Passes a weight on: as a whole, or one of 16 or 32 bits in order in pieces of
/// [`PIECE`](crate::files::tensor::PIECE) elements, of which the last may have fewer.
pub type ReadPieces<'a> = dyn FnMut(&mut dyn FnMut(WeightSource) -> Result<()>) -> Result<()> + 'a;

/// Loads weights. `read` is called at most once, and not at all in a dry run.
pub trait Weights: Operands {
    /// A 16-bit weight is quantized as `quantization` says; one that is stored in NF4 stays as it is, and
    /// `quantization` describes it.
    fn weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<WeightSource>,
    ) -> Result<Self::Weight>;
    /// True if the device quantizes weights that come in pieces.
    fn quantizes(&self) -> bool {
        false
    }
    /// A weight that is quantized as `options` say, unless it comes in NF4; only where the device
    /// [quantizes](Self::quantizes). `read` is called once more where a value is not finite.
    fn quantized(
        &mut self,
        name: &str,
        _n: usize,
        _k: usize,
        _options: &Nf4Options,
        _read: &mut ReadPieces<'_>,
    ) -> Result<Self::Weight> {
        Err(Error::Failed(format!("{name}: the device does not quantize")))
    }
    /// A weight of `layer` that stays in its file, in NF4 as `quantization` describes it.
    fn weight_on_disk(
        &mut self,
        name: &str,
        _n: usize,
        _k: usize,
        _quantization: Quantization,
        _layer: usize,
        _open: &mut dyn FnMut() -> Result<Nf4OnDisk>,
    ) -> Result<Self::Weight> {
        Err(Error::Failed(format!("{name}: weights stay on disk only where the CPU computes")))
    }
    /// Bytes read so far of weights that stay on disk; none where all are in memory.
    fn weights_read(&self) -> Option<DiskTraffic> {
        None
    }
    /// The linear weights that are loaded next are those of a layer that has them there.
    fn begin_layer(&mut self, _residency: Residency) {}
    /// Moves the weights of a layer's groups to pinned host memory, where the device has memory of its own.
    fn pin_weights(&mut self, _groups: [&mut LinearGroup<Self>; 4]) -> Result<()> {
        Ok(())
    }
    /// All weights are loaded, by all processes that share some: from now on they are used.
    fn weights_loaded(&mut self) -> Result<()> {
        Ok(())
    }
    /// Begins to copy the weights of the layer that is used next to the device, while the layer before it computes.
    fn prefetch_weights(&mut self, _groups: [&LinearGroup<Self>; 4]) -> Result<()> {
        Ok(())
    }
    /// Operations that are run next use the weights of this layer, and of no other that waits in host memory.
    fn wait_weights(&mut self, _groups: [&LinearGroup<Self>; 4]) -> Result<()> {
        Ok(())
    }
    /// A table whose rows are only gathered may be [`Residency::Pinned`].
    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        residency: Residency,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<HostTensor>,
    ) -> Result<Self::Table>;
    /// An output layer that waits in pinned host memory, where the device has memory of its own. Rows are read where
    /// they are, if it is the embedding too; otherwise processes of a machine may have one copy of it.
    fn waiting_table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        _is_embedding: bool,
        stored: StoredType,
        read: &mut dyn FnMut() -> Result<HostTensor>,
    ) -> Result<Self::Table> {
        self.table(name, vocab, hidden, Residency::Pinned, stored, read)
    }
    /// A table that stays in its file, whose rows are read where they are needed: as output layer (`is_head`) all of
    /// them, in parts. `open` is not called in a dry run.
    fn table_on_disk(
        &mut self,
        name: &str,
        _vocab: usize,
        _hidden: usize,
        _is_head: bool,
        _stored: StoredType,
        _open: &mut dyn FnMut() -> Result<RowsOnDisk>,
    ) -> Result<Self::Table> {
        Err(Error::Failed(format!("{name}: weights stay on disk only where the CPU computes")))
    }
    /// Brings a table that waits in host memory to the device, where operations that are run next use it as output
    /// layer.
    fn wait_table(&mut self, _table: &Self::Table) -> Result<()> {
        Ok(())
    }
    /// Gives up what [`wait_table`](Self::wait_table) has brought.
    fn release_table(&mut self) {}
    fn vector(
        &mut self,
        name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Vector>;
    /// A table that is trained (`modules_to_save`): its values, a gradient and the optimizer's states. `init` is called
    /// at most once, and not at all in a dry run.
    fn trained_table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        states: StateFormat,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Table>;
    /// A norm's weight that is trained, as [`trained_table`](Self::trained_table).
    fn trained_vector(
        &mut self,
        name: &'static str,
        len: usize,
        states: StateFormat,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<Self::Vector>;
    /// A table `[vocab, hidden]` in which the rows of `tokens`, in order, have values of their own, `[tokens, hidden]`:
    /// trained, with a gradient and `states`, or only computed with (`None`). `read` gives the table and these values,
    /// where they are others than the table's; it is called at most once, and not at all in a dry run.
    fn table_with_rows(
        &mut self,
        name: &'static str,
        shape: [usize; 2],
        residency: Residency,
        stored: StoredType,
        tokens: &[u32],
        states: Option<StateFormat>,
        read: &mut dyn FnMut() -> Result<(HostTensor, Option<Vec<f32>>)>,
    ) -> Result<Self::Table>;
    /// Puts rows that are trained where operations read them, after they have changed.
    fn refresh_rows(&mut self, _table: &mut Self::Table) -> Result<()> {
        Ok(())
    }
    /// ‖W‖² of each row of a weight `[n, k]`, as it is computed with; empty in a dry run.
    fn row_squares(&mut self, name: &str, weight: &Self::Weight, n: usize, k: usize) -> Result<Vec<f32>>;
    /// Computes the norms of [`Magnitude`](super::Magnitude) again, after A and B have changed. The layer's weights
    /// have been [waited for](Self::wait_weights).
    fn refresh_magnitudes(&mut self, group: &mut LinearGroup<Self>) -> Result<()>;
    /// Rotation angles of `positions` positions, `half` = head_dim / 2 cosines and as many sines each; kept by the
    /// backend, which returns the table's number. All tables of a model have the same positions.
    fn rope_table(&mut self, positions: usize, half: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<usize>;
    /// Positions that have rotation angles.
    fn positions(&self) -> usize;
    /// Refuses, when the model is built, linear layers that the device cannot compute, and reserves the workspace of
    /// the others. `name` is that of a weight of the group.
    fn prepare_group(&mut self, _name: &str, _group: &LinearGroup<Self>) -> Result<()> {
        Ok(())
    }
    /// The width of S and T: Σr, with what the device pads the ranks by.
    fn low_rank_columns(&self, group: &LinearGroup<Self>) -> usize {
        group.r()
    }
    /// The room behind each row of the group's input that saves its product a copy of it: S is put there.
    fn room_for_s(&self, _group: &LinearGroup<Self>) -> usize {
        0
    }
    /// The room behind each row of the gradient of the group's outputs, in which the product of dX puts T.
    fn room_for_t(&self, _group: &LinearGroup<Self>) -> usize {
        0
    }
}

/// The 16-bit weight of `n` rows of `k` columns called `name` in NF4, the same on every device.
pub(super) fn quantize(name: &str, n: usize, k: usize, tensor: &HostTensor, options: &Nf4Options) -> Result<Nf4Matrix> {
    let quantized = match &tensor.data {
        TensorData::Bf16(values) => Nf4Matrix::quantize_bf16(values, n, k, options),
        _ => Nf4Matrix::quantize(&tensor.to_f32(), n, k, options),
    };
    match quantized {
        Ok(matrix) => Ok(matrix),
        Err(cause) => bail_usage!("{name}: {cause}"),
    }
}
