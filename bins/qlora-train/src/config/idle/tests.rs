use crate::config::Settings;

#[test]
fn a_setting_without_effect_is_told_with_its_cause() {
    for (file, told) in [
        ("quantization: none\nnf4_block_size: 128", Some("nf4_block_size")),
        ("quantization: none\ndouble_quant: false", Some("double_quant")),
        ("quantization: none", None),
        ("quantization: nf4\nnf4_block_size: 128\ndouble_quant: false", None),
        ("eval_max_new_tokens: 5", Some("eval_max_new_tokens")),
        ("eval_max_new_tokens: 5\nsample_prompts: [Hello]", None),
        ("eval_max_new_tokens: 5\neval_answers: 3\nval_set_size: 4\neval_steps: 2", None),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0.1", Some("warmup_ratio")),
        ("lr_scheduler_type: constant\nwarmup_steps: 4", Some("warmup_steps")),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0", None),
        ("lr_scheduler_type: constant_with_warmup\nwarmup_ratio: 0.1", None),
        ("lr_scheduler_type: constant", None),
        ("lr_scheduler_type: constant\nwarmup_ratio: 0.03\nwarmup_steps: none\neval_max_new_tokens: 128", None),
        ("quantization: none\nnf4_block_size: 64\ndouble_quant: true", None),
    ] {
        let (_, notes) = Settings::from_yaml_noting(file, "cfg.yaml", &[]).unwrap();
        let notes: Vec<&String> = notes.iter().filter(|note| note.contains("without effect here, as")).collect();
        match told {
            None => assert!(notes.is_empty(), "{file}: {notes:?}"),
            Some(name) => assert!(matches!(&notes[..], [note] if note.contains(name)), "{file}: {notes:?}"),
        }
    }
}
