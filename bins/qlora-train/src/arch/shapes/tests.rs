use super::*;

/// Parameters as the models are published with.
#[test]
fn the_named_models_have_their_published_sizes() {
    let published = [
        ("llama-3.2-1b", 1_235_814_400u64),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("mistral-7b", 7_248_023_552),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-7b-v0.2", 7_241_732_096),
        ("mistral-nemo-12b", 12_247_782_400),
        ("mistral-small-24b", 23_572_403_200),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("smollm3-3b", 3_075_098_624),
        ("granite-3.3-2b", 2_533_539_840),
        ("granite-3.3-8b", 8_170_864_640),
        ("seed-oss-36b", 36_151_104_512),
        ("olmo-2-1b", 1_484_916_736),
        ("olmo-2-7b", 7_298_617_344),
        ("olmo-2-13b", 13_716_198_400),
        ("olmo-2-32b", 32_234_279_936),
        ("olmo-3-7b", 7_298_011_136),
        ("olmo-3-32b", 32_233_522_176),
        ("phi-3-mini", 3_821_079_552),
        ("phi-3.5-mini", 3_821_079_552),
        ("phi-3-medium", 13_960_238_080),
        ("phi-4", 14_659_507_200),
        ("phi-4-mini", 3_836_021_760),
        ("gemma-2-2b", 2_614_341_888),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-2-27b", 27_227_128_320),
        ("gemma-3-270m", 268_098_176),
        ("gemma-3-1b", 999_885_952),
        ("gemma-3-4b", 3_880_263_168),
        ("gemma-3-12b", 11_766_034_176),
        ("gemma-3-27b", 27_009_346_304),
    ];
    assert_eq!(published.map(|(name, _)| name).to_vec(), names().collect::<Vec<_>>());
    for (name, parameters) in published {
        let arch = shape(name).unwrap();
        assert_eq!(arch.num_parameters(), Some(parameters), "{name}");
    }
}

#[test]
fn a_model_is_found_by_the_names_that_it_goes_by() {
    let same = |name: &str, base: &str| assert_eq!(shape(name).unwrap(), shape(base).unwrap(), "{name}");
    same("Llama-3.3-70B-Instruct", "llama3-70b");
    same("Qwen2.5-7B-Instruct", "qwen2.5-7b");
    same("gemma-3-1b-it", "gemma-3-1b");
    same("Phi-3-mini-4k-instruct", "phi-3-mini");
    same("granite-3.3-8b-instruct", "granite-3.3-8b");
    let windows = |name: &str, layer| shape(name).unwrap().layer(layer).window;
    assert_eq!([windows("mistral-7b-v0.1", 31), windows("mistral-7b", 31)], [Some(4096), None]);
    assert_eq!([windows("gemma-3-270m", 4), windows("gemma-3-270m", 5)], [Some(512), None]);
    let error = shape("llama-9").unwrap_err().to_string();
    for part in ["\"llama-9\"", "llama-3-70b", "gemma-3-270m", "config.json"] {
        assert!(error.contains(part), "{error}");
    }
}
