//! Limits of programs that serve adapters.

use super::AdapterConfig;

/// Ranks that vLLM can be told to make room for (`--max-lora-rank`).
pub(crate) const VLLM_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
/// Without being told.
const VLLM_DEFAULT_RANK: usize = 16;

/// The words that make vLLM's room for a rank, none where it is there without. None: there is no room for so much.
pub(crate) fn vllm_rank_flag(r: usize) -> Option<String> {
    let rank = VLLM_RANKS.into_iter().find(|&rank| rank >= r)?;
    Some(if rank > VLLM_DEFAULT_RANK { format!(" --max-lora-rank {rank}") } else { String::new() })
}

/// Why engines that read plain LoRA of one rank do not serve an adapter. None: they do.
pub(crate) fn not_plain(config: &AdapterConfig) -> Option<&'static str> {
    if config.use_dora {
        return Some("magnitudes (DoRA)");
    }
    if !config.modules_to_save.is_empty() {
        return Some("modules that were trained whole");
    }
    if !config.trainable_token_indices.is_empty() {
        return Some("rows of single tokens");
    }
    let has_own = !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty();
    has_own.then_some("ranks or alphas of single modules")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm_is_told_the_least_rank_that_is_enough() {
        for (r, flag) in [(1, Some("")), (16, Some("")), (17, Some(" --max-lora-rank 32")), (513, None)] {
            assert_eq!(vllm_rank_flag(r).as_deref(), flag, "{r}");
        }
    }
}
