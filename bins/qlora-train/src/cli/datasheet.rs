//! Figures of NVIDIA's datasheets.

/// FLOP/s of dense products of bf16, with sums in f32, that NVIDIA names for a GPU; none for one that is not listed.
pub fn peak_flops(gpu: &str) -> Option<f64> {
    const PEAKS: [(&str, f64); 17] = [
        ("GB200", 2500e12),
        ("H100 PCIe", 756e12),
        ("H100 NVL", 835e12),
        ("H100", 989e12),
        ("H200", 989e12),
        ("B200", 2250e12),
        ("A100", 312e12),
        ("L40S", 362e12),
        ("RTX 6000 Ada", 364e12),
        ("L40", 181e12),
        ("RTX A6000", 155e12),
        ("RTX A4000", 77e12),
        ("A40", 150e12),
        ("RTX 5090", 209e12),
        ("RTX 4090", 165e12),
        ("RTX 3090 Ti", 80e12),
        ("RTX 3090", 71e12),
    ];
    // Slower cards whose names contain those of faster ones.
    const OTHERS: [&str; 3] = ["4090 D", "5090 D", "Laptop"];
    if OTHERS.iter().any(|name| gpu.contains(name)) {
        return None;
    }
    PEAKS.iter().find(|(name, _)| gpu.contains(name)).map(|(_, peak)| *peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_the_most_exact_name() {
        assert_eq!(peak_flops("NVIDIA H100 80GB HBM3"), Some(989e12));
        assert_eq!(peak_flops("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(peak_flops("NVIDIA L40S"), Some(362e12));
        assert_eq!(peak_flops("NVIDIA L40"), Some(181e12));
        assert_eq!(peak_flops("NVIDIA A40"), Some(150e12));
        assert_eq!(peak_flops("NVIDIA GeForce RTX 5090"), Some(209e12));
        assert_eq!(["NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU"].map(peak_flops), [None; 2]);
        assert_eq!(peak_flops("the emulation on the host (no GPU)"), None);
    }
}
