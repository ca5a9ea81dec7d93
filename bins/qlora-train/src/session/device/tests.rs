use super::*;

/// Sums over processes may be made in the host's memory, whatever the steps work on. Processes that make them
/// elsewhere share the memory of a machine too.
#[test]
fn the_bytes_of_sums_are_in_the_budget_of_every_device() {
    let alone = Budget { limit: 5000, in_use: 100, in_use_name: "all", read_bytes: 200, host_limit: 4000, sharers: 1 };
    for on_host in [true, false] {
        assert_eq!(alone.shared(1, Some(1000), on_host, None), alone);
        let shared = alone.shared(2, Some(1000), on_host, Some(300));
        let found = (shared.limit, shared.in_use, shared.host_limit);
        assert_eq!(found, if on_host { (1000, 400, 4000) } else { (5000, 100, 700) });
    }
    assert_eq!(alone.shared(2, Some(1000), false, Some(2000)).host_limit, 0);
    assert_eq!(alone.shared(2, Some(1000), false, Some(0)).host_limit, 1000);
    // More than any machine has, of another one.
    let planned = |on_host| alone.shared_in_plan(2, Some(1 << 60), on_host, Some(300));
    assert_eq!((planned(true).limit, planned(true).in_use), (1 << 60, 400));
    assert_eq!((planned(false).limit, planned(false).host_limit), (5000, (1 << 60) - 300));
    assert_eq!(alone.shared_in_plan(2, Some(1 << 60), true, None), alone);
    let parts = [1, 2].map(|processes| alone.shared_in_plan(processes, None, true, Some(300)).limit as f64);
    assert!((0.3..0.7).contains(&(parts[1] / parts[0])), "{parts:?}");
}

#[test]
fn the_order_of_sums_is_a_part_of_a_run_in_bf16() {
    assert_eq!(Device::Cpu(Precision::F32).arithmetic(), None);
    let [chains, tiles] = [Isa::SCALAR, Isa::AMX_TWIN].map(|isa| Device::Cpu(Precision::Bf16(isa)));
    assert_ne!(chains.arithmetic(), tiles.arithmetic());
    assert!(chains.arithmetic().unwrap().ends_with(&format!(", order of sums {ORDER_OF_SUMS}")));
    assert!(chains.in_words().ends_with("bf16, twin of AVX-512-BF16"), "{}", chains.in_words());
}

#[test]
fn a_gpu_is_refused_by_a_build_without_kernels_for_one() {
    let error = ensure_kernels(Kernels::Absent).unwrap_err().to_string();
    for words in ["`device: cuda`", "no CUDA support", "rebuild it with `cargo build", "`--device cpu`"] {
        assert!(error.contains(words), "{error}");
    }
    for kernels in [Kernels::Cuda, Kernels::Emulated] {
        assert!(ensure_kernels(kernels).is_ok());
    }
}

/// The allocator keeps what lies below a piece in use, unless it is asked.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn memory_that_was_given_back_is_in_no_budget() {
    let pieces = |count: usize| std::hint::black_box((0..count).map(|_| vec![1_u8; 1000]).collect::<Vec<_>>());
    let (below, above) = (pieces(64 << 10), pieces(1 << 10));
    let before = Budget::of_host(u64::MAX).in_use;
    drop(below);
    let after = Budget::of_host(u64::MAX).in_use;
    assert!(after + (48 << 20) < before, "{before} {after} {}", above.len());
}

#[test]
fn a_second_budget_is_not_charged_with_what_was_taken_after_the_first() {
    let first = Budget::of_host(u64::MAX);
    let most = most_while_reading();
    // Taken, and never touched.
    let bytes = usize::try_from(heap_peak()).unwrap() + (256 << 20);
    let taken = std::hint::black_box(vec![0_u8; bytes]);
    assert!(taken.len() == bytes && heap_peak() > most + (128 << 20));
    drop(taken);
    assert_eq!(most_while_reading(), most);
    // Other memory of this process may have grown in the meantime.
    let own = own_bytes().next_multiple_of(Budget::STEP) + Budget::STEP;
    assert!(Budget::of_host(u64::MAX).read_bytes <= first.read_bytes.max(own));
}
