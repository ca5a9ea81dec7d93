//! Limits of programs that serve adapters.

use super::AdapterConfig;

/// Ranks that vLLM can make room for (`--max-lora-rank`).
pub(crate) const VLLM_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
/// vLLM's rank without that option.
const VLLM_DEFAULT_RANK: usize = 16;

/// The option that makes vLLM serve a rank; empty where its default is enough. None: vLLM serves no rank as large.
pub(crate) fn vllm_rank_flag(r: usize) -> Option<String> {
    let rank = VLLM_RANKS.into_iter().find(|&rank| rank >= r)?;
    Some(if rank > VLLM_DEFAULT_RANK { format!(" --max-lora-rank {rank}") } else { String::new() })
}

/// The reason why engines that read plain LoRA of one rank do not serve an adapter. None: they do.
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
