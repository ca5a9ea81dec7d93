#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trainer_lab::fuzz_targets::rank_frames(data));
