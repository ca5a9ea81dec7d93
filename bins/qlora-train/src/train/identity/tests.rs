use super::*;
use serde_json::json;

/// Another run in the same place has nothing to say of how this one adds up.
#[test]
fn sums_that_were_recorded_are_those_of_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let of_run = json!({"seed": 1, "max_steps": 3});
    let run = json!({"identity": {"settings": of_run, "sums": "by NCCL"}});
    std::fs::write(dir.path().join(RUN_FILE), run.to_string()).unwrap();
    let settings = Settings::load(None, &[]).unwrap();
    let found = |of: Value| recorded_sums(&settings, dir.path(), of.as_object().unwrap());
    for same in [of_run, json!({"seed": 1, "max_steps": 9})] {
        assert_eq!(found(same).as_deref(), Some("by NCCL"));
    }
    for other in [json!({"seed": 2, "max_steps": 3}), json!({"seed": 1, "max_steps": 3, "lora_r": 4}), json!({})] {
        assert_eq!(found(other.clone()), None, "{other}");
    }
    assert_eq!(recorded_sums(&settings, &dir.path().join("none"), &Map::new()), None);
}

#[test]
fn every_difference_is_named_and_changes_the_hash() {
    let settings = |seed: u64| json!({"lora_r": 4, "seed": seed}).as_object().unwrap().clone();
    let tokens = |eos: &str| BTreeMap::from([("eos_token".to_owned(), eos.to_owned())]);
    let one = Identity {
        settings: settings(1),
        base_config: json!({"hidden_size": 8}),
        not_quantized: Vec::new(),
        tokenizer: None,
        special_tokens: tokens("</s>"),
        added_tokens: None,
        chat_template: None,
        tool_template: None,
        clock: None,
        data: vec!["a".into()],
        val_data: Vec::new(),
        init_adapter: None,
        questions: None,
        tokens: "t".into(),
        sums: None,
    };
    assert_eq!(one.difference(&one.clone()), None);
    let others = [
        (Identity { settings: settings(2), ..one.clone() }, "`seed` was 2 and is 1 now"),
        (Identity { base_config: json!({}), ..one.clone() }, "config.json changed"),
        (Identity { not_quantized: vec!["q".into()], ..one.clone() }, "unquantized changed"),
        (Identity { tokenizer: Some("t".into()), ..one.clone() }, "tokenizer.json changed"),
        (
            Identity { special_tokens: tokens("<eos>"), ..one.clone() },
            "`eos_token` of the model's tokenizer_config.json or special_tokens_map.json was \"<eos>\" and is \"</s>\" now",
        ),
        (Identity { special_tokens: BTreeMap::new(), ..one.clone() }, "was nothing and is \"</s>\" now"),
        (Identity { added_tokens: Some("t".into()), ..one.clone() }, "added to the model's vocabulary changed"),
        (Identity { chat_template: Some("t".into()), ..one.clone() }, "the chat template changed"),
        (Identity { tool_template: Some("t".into()), ..one.clone() }, "for conversations with tools changed"),
        (Identity { clock: Some(Timestamp::UNIX_EPOCH), ..one.clone() }, "the date that the chat template writes"),
        (Identity { init_adapter: Some("t".into()), ..one.clone() }, "the contents of `init_adapter` changed"),
        (Identity { questions: Some("t".into()), ..one.clone() }, "what is asked while the run trains"),
        (Identity { tokens: "u".into(), ..one.clone() }, "the tokens that this version"),
        (Identity { data: vec!["b".into()], ..one.clone() }, "the contents of `data` changed"),
        (Identity { val_data: vec!["b".into()], ..one.clone() }, "the contents of `val_data` changed"),
        (Identity { settings: Map::new(), ..one.clone() }, "`lora_r` was nothing and is 4 now"),
    ];
    for (other, words) in others {
        let difference = one.difference(&other).unwrap();
        assert!(difference.contains(words), "{difference:?} lacks {words:?}");
        assert_ne!(other.hash(), one.hash(), "{words}");
    }
    // Arithmetic is told in full, also where it is that of no word.
    let computing = |by: &str| Identity {
        settings: json!({"lora_r": 4, "seed": 1, "compute": by}).as_object().unwrap().clone(),
        ..one.clone()
    };
    let long = "bf16, linear layers by dequantize + cuBLASLt 13.0.2 on NVIDIA H100 PCIe";
    for (here, there, words) in [
        (computing("bf16"), one.clone(), "was \"f32 on the CPU\" and is \"bf16\" now"),
        (one.clone(), computing(long), "PCIe\" and is \"f32 on the CPU\" now"),
        (computing("bf16"), computing(long), "cuBLASLt 13.0.2 on NVIDIA H100 PCIe\" and is \"bf16\" now"),
    ] {
        let difference = here.difference(&there).unwrap();
        assert!(difference.starts_with("arithmetic (`compute`, `linear`, `device`) was "), "{difference}");
        assert!(difference.contains(words), "{difference:?} lacks {words:?}");
    }
    // Settings for reading rows are named where they change the tokens.
    let read = |by: &str, tokens: &str| Identity {
        settings: json!({"lora_r": 4, "seed": 1, "role_key": by}).as_object().unwrap().clone(),
        tokens: tokens.to_owned(),
        ..one.clone()
    };
    assert_eq!(one.difference(&read("from", "t")), None);
    let difference = read("role", "t").difference(&read("from", "u")).unwrap();
    assert_eq!(difference, "`role_key` was \"from\" and is \"role\" now");
    // All differences are named, those that change rows first, and the length last.
    let all = json!({"lora_r": 8, "max_length": 64, "max_steps": 9, "seed": 1}).as_object().unwrap().clone();
    let (chat_template, tokens) = (Some("t".to_owned()), "u".to_owned());
    let several = Identity { settings: all, chat_template, tokens, ..one.clone() };
    let told = "the chat template changed; `max_length` was nothing and is 64 now; `lora_r` was 4 and is 8 now";
    assert_eq!(several.difference_beyond_length(&one).unwrap(), told);
    assert_eq!(several.difference(&one).unwrap(), format!("{told}; `max_steps` was nothing and is 9 now"));
    // The record of a setting without a value is no word for people.
    let unset = json!({"lora_r": 4, "max_steps": null, "seed": 1}).as_object().unwrap().clone();
    let unset = Identity { settings: unset, ..one.clone() };
    let given = json!({"lora_r": 4, "max_steps": 9, "seed": 1}).as_object().unwrap().clone();
    let given = Identity { settings: given, ..one.clone() };
    assert_eq!(unset.difference(&given).unwrap(), "`max_steps` was 9 and is nothing now");
    // A run in one process may go on in several, and the other way round.
    let summed = |sums: &str| Identity { sums: Some(sums.to_owned()), ..one.clone() };
    assert!(one.difference(&summed("by NCCL")).is_none() && summed("by NCCL").difference(&one).is_none());
    let difference = summed("in the order of the processes").difference(&summed("by NCCL")).unwrap();
    assert!(difference.contains("added up by NCCL and are in the order of the processes now"), "{difference}");
    assert_eq!(summed("by NCCL").hash(), one.hash());
}
