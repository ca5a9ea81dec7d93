#![no_main]

libfuzzer_sys::fuzz_target!(
    init: trainer_lab::fuzz_targets::begin(),
    |data: &[u8]| trainer_lab::fuzz_targets::cache_note(data)
);
