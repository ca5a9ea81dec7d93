use super::*;

#[test]
fn names_of_nvidia_smi_and_of_people_are_those_of_the_list() {
    for (value, name, memory) in [
        ("NVIDIA GeForce RTX 4090", "RTX 4090", "23.5GiB"),
        ("rtx-4090", "RTX 4090", "23.5GiB"),
        ("RTX4090", "RTX 4090", "23.5GiB"),
        ("geforce_rtx_4090_24gb", "RTX 4090", "23.5GiB"),
        (" 4090 24 GB ", "RTX 4090", "23.5GiB"),
        ("a100", "A100", "79.1GiB"),
        ("a100-80gb", "A100", "79.1GiB"),
        ("A100 80GB", "A100", "79.1GiB"),
        ("NVIDIA A100-SXM4-80GB", "A100", "79.1GiB"),
        ("NVIDIA A100 80GB PCIe", "A100", "79.1GiB"),
        ("NVIDIA A100-SXM4-40GB", "A100", "39.3GiB"),
        ("NVIDIA A100-PCIE-40GB", "A100", "39.3GiB"),
        ("a100_40g", "A100", "39.3GiB"),
        ("h100-sxm", "H100", "79.1GiB"),
        ("H100SXM5", "H100", "79.1GiB"),
        ("NVIDIA H100 80GB HBM3", "H100", "79.1GiB"),
        ("NVIDIA H100 PCIe", "H100 PCIe", "79.1GiB"),
        ("NVIDIA H100 NVL", "H100 NVL", "93.0GiB"),
        ("NVIDIA H200 NVL", "H200", "139.7GiB"),
        ("NVIDIA RTX A6000", "RTX A6000", "47.4GiB"),
        ("rtx 6000 ada", "RTX 6000 Ada", "44.4GiB"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", "44.4GiB"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000", "94.9GiB"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER", "15.5GiB"),
        ("NVIDIA A10G", "A10G", "21.9GiB"),
        ("NVIDIA L4", "L4", "21.9GiB"),
        ("rtx 3080 12GB", "RTX 3080", "11.6GiB"),
        ("NVIDIA GeForce RTX 3080 Ti", "RTX 3080 Ti", "11.6GiB"),
        ("NVIDIA GeForce RTX 4060", "RTX 4060", "7.6GiB"),
        ("NVIDIA GeForce RTX 4070 SUPER", "RTX 4070 SUPER", "11.5GiB"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D", "23.5GiB"),
        ("NVIDIA RTX 4000 Ada Generation", "RTX 4000 Ada", "18.1GiB"),
        ("NVIDIA RTX 5000 Ada Generation", "RTX 5000 Ada", "29.4GiB"),
        ("NVIDIA RTX A2000 12GB", "RTX A2000", "11.6GiB"),
        ("NVIDIA RTX A2000", "RTX A2000", "5.6GiB"),
        ("NVIDIA L20", "L20", "44.4GiB"),
        ("NVIDIA H20", "H20", "94.9GiB"),
    ] {
        assert_eq!(gpu_named(value), Some((name, memory)), "{value}");
    }
    for gpu in &GPUS {
        assert_eq!(gpu_named(&gpu.name.to_uppercase()).map(|(name, _)| name), Some(gpu.name), "{}", gpu.key);
        assert_eq!(gpu_named(gpu.key).map(|(name, _)| name), Some(gpu.name), "{}", gpu.key);
        let alone: Vec<_> = gpu.sizes.iter().map(|(gb, _)| gpu_named(&format!("{} {gb}GB", gpu.name))).collect();
        let memory: Vec<_> = gpu.sizes.iter().map(|(_, memory)| Some((gpu.name, *memory))).collect();
        assert_eq!(alone, memory, "{}", gpu.key);
    }
}

#[test]
fn a_name_without_a_size_says_which_was_taken() {
    let note = |value| choose(value).map(|chosen| chosen.note).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(note("NVIDIA A100"), "the A100 with 80 GB is taken; there is a100-40gb too");
    assert_eq!([note("a100 40gb"), note("NVIDIA A100-SXM4-80GB"), note("h100")], ["", "", ""]);
}

#[test]
fn what_is_no_name_is_refused_with_the_list_and_the_nearest() {
    let refused = |value| choose(value).map(|chosen| chosen.gpu.name).unwrap_err();
    for (value, words) in [
        ("4090s", &["l40s, l40, ", "--device-memory", "4090 is nearest"][..]),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", &["--device-memory", "laptop"]),
        ("NVIDIA GeForce RTX 3070 Laptop GPU", &["--device-memory", "laptop"]),
        ("NVIDIA GH200 480GB", &["--device-memory", "GH200"]),
        ("gb200", &["--device-memory", "GB200"]),
        ("24GB", &["--device-memory"]),
        ("", &["--device-memory"]),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", &["--device-memory"]),
        ("rtx 4090 48gb", &["RTX 4090 with 24 GB", "--device-memory"]),
        ("a100-60gb", &["A100 with 80 GB or 40 GB"]),
        ("Tesla T4", &["compute capability 8.0"]),
        ("Tesla V100-SXM2-32GB", &["compute capability 8.0"]),
        ("v100", &["compute capability 8.0"]),
        ("NVIDIA GeForce GTX 1080 Ti", &["compute capability 8.0"]),
        ("Quadro RTX 8000", &["compute capability 8.0"]),
    ] {
        let error = refused(value);
        assert!(words.iter().all(|word| error.contains(word)), "{value}: {error}");
    }
    // A card with another number is not taken either, however similar the names are.
    for value in ["24GB", "voodoo", "4091", "RTX 4050", "3070 Ti 8 GB laptop", "gh200", "h201"] {
        assert!(!refused(value).contains("nearest"), "{value}: {}", refused(value));
    }
}
