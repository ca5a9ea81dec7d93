use super::*;
use serde_json::json;

#[test]
fn columns_are_renamed_and_a_missing_one_is_named() {
    let columns = Columns::new(Some("question"), Some("answer"), None, None, None, None);
    let row = json!({"question": "2+2?", "answer": "4", "id": 7});
    assert_eq!(columns.renamed(row, &mut Vec::new()).unwrap(), json!({"prompt": "2+2?", "completion": "4", "id": 7}));
    let error = columns.renamed(json!({"question": "2+2?", "reply": "4"}), &mut Vec::new()).unwrap_err();
    assert!(error.contains("`answer` is missing") && error.contains("`reply`"), "{error}");
    let alpaca = Columns::new(Some("task"), Some("out"), Some("about"), None, None, None);
    let row = alpaca.renamed(json!({"task": "a", "out": "b"}), &mut Vec::new()).unwrap();
    assert_eq!(row, json!({"instruction": "a", "output": "b"}));
    let turns = Columns::new(None, None, None, None, Some("talk"), None);
    let said = json!([{"from": "human", "value": "x"}]);
    for talk in [said.clone(), said.to_string().into()] {
        let row = turns.renamed(json!({"talk": talk}), &mut Vec::new()).unwrap();
        assert_eq!(row["conversations"], said);
    }
    assert!(
        turns
            .renamed(json!({"talk": [{"role": "user", "content": "x"}]}), &mut Vec::new())
            .unwrap()
            .get("messages")
            .is_some()
    );
}

/// The column that is named is the one that is read, also where a row has the known one instead.
#[test]
fn a_named_column_is_not_replaced_by_the_known_one() {
    let of = |named: [Option<&str>; 5]| Columns::new(named[0], named[1], named[2], named[3], named[4], None);
    for (columns, row, words) in [
        (of([None, None, None, None, Some("conversations")]), json!({"messages": []}), "`conversations` is missing"),
        (
            of([None, None, None, None, Some("conversations")]),
            json!({"messages": [], "conversations": null}),
            "`conversations` is null",
        ),
        (of([None, None, None, None, Some("messages")]), json!({"conversations": []}), "`messages` is missing"),
        (
            of([Some("prompt"), Some("completion"), None, None, None]),
            json!({"instruction": "q", "output": "a"}),
            "`prompt` is missing",
        ),
        (of([Some("q"), Some("a"), None, None, None]), json!({"q": "x", "a": null, "completion": "y"}), "`a` is null"),
        (
            of([Some("instruction"), None, Some("context"), None, None]),
            json!({"instruction": "q", "output": "a", "input": "other"}),
            "`context` is missing",
        ),
        (
            of([Some("prompt"), None, None, Some("rules"), None]),
            json!({"prompt": "q", "completion": "a", "system": "other", "rules": null}),
            "`rules` is null",
        ),
    ] {
        let error = columns.renamed(row, &mut Vec::new()).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    // A column that not every row has may be missing, and a row may have both.
    let columns = of([Some("prompt"), None, None, Some("rules"), None]);
    let row = json!({"prompt": "q", "completion": "a"});
    assert_eq!(columns.renamed(row.clone(), &mut Vec::new()).unwrap(), row);
    let row = json!({"prompt": "q", "completion": "a", "system": "other", "rules": "r"});
    assert_eq!(columns.renamed(row, &mut Vec::new()).unwrap()["system"], "r");
    // A single column of the pair determines the format of the rows.
    let columns = of([None, Some("reply"), None, None, None]);
    assert!(columns.check(RowKind::PromptCompletion).is_ok());
    let error = columns.check(RowKind::Messages).unwrap_err();
    assert!(error.contains("a row of messages") && error.contains("one of prompt + completion"), "{error}");
    let text = Columns::new(None, None, None, None, None, Some("text"));
    assert!(text.check(RowKind::Messages).is_ok(), "a file of TRL says so beside turns");
    assert!(Columns::default().check(RowKind::Text).is_ok());
}

#[test]
fn columns_are_guessed_by_their_words() {
    let text = |names: [&str; 2]| Columns::guess(json!({names[0]: "x", "id": 3, names[1]: "y"}).as_object().unwrap());
    for (names, flags) in [
        (["question", "answer"], "--prompt-column question --completion-column answer"),
        (["Question", "Answer"], "--prompt-column Question --completion-column Answer"),
        (["inputs", "targets"], "--prompt-column inputs --completion-column targets"),
        (["q", "a"], "--prompt-column q --completion-column a"),
        (["model_answer", "user_question"], "--prompt-column user_question --completion-column model_answer"),
        (["userPrompt", "botReply"], "--prompt-column userPrompt --completion-column botReply"),
        (["context", "answer"], "--prompt-column context --completion-column answer"),
        (["context", "question"], ""),
        (["prompt", "response"], "--completion-column response"),
        (["the question", "answer"], "--prompt-column 'the question' --completion-column answer"),
        (["input", "output"], "--prompt-column input --completion-column output"),
        (["aardvark", "quiz"], ""),
        (["prompt", "output"], "--prompt-column prompt --completion-column output"),
    ] {
        let expected = if flags.is_empty() { String::new() } else { format!("; did you mean `{flags}`?") };
        assert_eq!(text(names), expected, "{names:?}");
    }
    // Columns for the system message, and for the input.
    for (names, flags) in [
        (
            &["id", "system_prompt", "question", "response"][..],
            "--prompt-column question --completion-column response --system-column system_prompt",
        ),
        (
            &["instruction", "context", "response", "category"],
            "--prompt-column instruction --completion-column response --input-column context",
        ),
        (
            &["context", "question", "answer"],
            "--prompt-column question --completion-column answer --input-column context",
        ),
        (
            &["systemPrompt", "user_prompt", "reply"],
            "--prompt-column user_prompt --completion-column reply --system-column systemPrompt",
        ),
        (&["system", "query", "response", "history"], "--prompt-column query --completion-column response"),
        (&["operating_system", "query", "response"], "--prompt-column query --completion-column response"),
    ] {
        assert_eq!(Columns::guess_names(names), format!("; did you mean `{flags}`?"), "{names:?}");
    }
    for turn in [json!({"role": "user", "content": "a"}), json!({"from": "human", "value": "a"})] {
        let row = json!({"topic": "x", "dialogue": [turn]});
        assert_eq!(Columns::guess(row.as_object().unwrap()), "; did you mean `--messages-column dialogue`?");
    }
    for (row, flags) in [
        (
            json!({"id": "x", "talk": [{"speaker": "user", "text": "a"}]}),
            "--messages-column talk --role-key speaker --content-key text",
        ),
        (json!({"messages": [{"author": "user", "body": "a"}]}), "--role-key author --content-key body"),
        (
            json!({"contents": [{"role": "user", "parts": [{"text": "a"}]}]}),
            "--messages-column contents --role-key role --content-key parts",
        ),
    ] {
        assert_eq!(Columns::guess(row.as_object().unwrap()), format!("; did you mean `{flags}`?"));
    }
    let row = json!({"version": "1", "data": [{"prompt": "a", "completion": "b"}]});
    let expected = "; if its rows are those under `data`, give that list alone";
    assert_eq!(Columns::guess(row.as_object().unwrap()), expected);
    let row = json!({"k".repeat(1 << 16): [{"prompt": "a", "completion": "b"}]});
    let guess = Columns::guess(row.as_object().unwrap());
    assert!(guess.starts_with("; if its rows are those under `kk") && guess.len() < 200, "{guess}");
    for (row, guess) in [
        (json!({"id": "x", "segments": [{"label": true, "text": "a"}]}), ""),
        (json!({"doc_url": "x", "n": 3}), ""),
        (json!({"title": "x", "mapping": {"a": {}}}), ""),
        (
            json!({"pairs": [{"prompt": "a", "completion": "b"}]}),
            "; if its rows are those under `pairs`, give that list alone",
        ),
    ] {
        assert_eq!(Columns::guess(row.as_object().unwrap()), guess, "{row}");
    }
    let row = json!({"id": 3, "body": "x"});
    assert_eq!(Columns::guess(row.as_object().unwrap()), "; did you mean `--text-column body`?");
    assert_eq!(Columns::guess(json!({"text": "x"}).as_object().unwrap()), "");
    let long = "body".repeat(1000);
    assert_eq!(Columns::guess(json!({long: "x"}).as_object().unwrap()), "", "nobody reads it");
    assert_eq!(Columns::guess_names(&["question", "answer", "id"]), text(["question", "answer"]));
}
