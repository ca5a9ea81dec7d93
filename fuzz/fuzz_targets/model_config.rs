#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qlora_fuzz::targets::model_config(data));
