//! Limits of the kernels: models beyond them are refused when a model is loaded.

use super::operands::CudaWeight;
use crate::arch::Arch;
use crate::backend::{LinearGroup, Operands};
use crate::bail_usage;
use crate::error::Result;
use qlora_kernels::ops::attention::HEAD_DIMS;

/// The largest LoRA rank of the kernels.
const MAX_RANK: usize = qlora_kernels::sys::QK_MAX_R as usize;

const ELSEWHERE: &str = "`--device cpu` computes it";

/// Shapes of the whole model.
pub fn check_model(config: &Arch) -> Result<()> {
    let Arch { head_dim, hidden_size, intermediate_size, .. } = *config;
    if !HEAD_DIMS.contains(&head_dim) {
        let [others @ .., last] = HEAD_DIMS.map(|head_dim| head_dim.to_string());
        let built = format!("{} or {last}", others.join(", "));
        bail_usage!("config.json: `head_dim`: found {head_dim}, expected {built} on cuda; {ELSEWHERE}");
    }
    // Rows of these widths begin at multiples of 16 bytes, as the kernels read them.
    for (name, width) in [("hidden_size", hidden_size), ("intermediate_size", intermediate_size)] {
        if !width.is_multiple_of(8) {
            bail_usage!("config.json: `{name}`: found {width}, expected a multiple of 8 on cuda; {ELSEWHERE}");
        }
    }
    Ok(())
}

/// The linear layers of one input. `name` is that of one of their weights.
pub fn check_group<B: Operands<Weight = CudaWeight>>(name: &str, group: &LinearGroup<B>) -> Result<()> {
    let nf4 = group.segments.iter().filter(|segment| matches!(segment.weight, CudaWeight::Nf4(_))).count();
    if nf4 != 0 && nf4 != group.segments.len() {
        bail_usage!(
            "{name}: of the {} weights that share its input {nf4} are held in NF4 and the others in 16 bits, expected one \
             kind on cuda; {ELSEWHERE}",
            group.segments.len()
        );
    }
    for lora in group.segments.iter().filter_map(|segment| segment.lora.as_ref()) {
        if lora.r > MAX_RANK {
            bail_usage!("{name}: found a LoRA rank of {}, expected at most {MAX_RANK} on cuda; {ELSEWHERE}", lora.r);
        }
    }
    Ok(())
}
