//! Calls of tools as other programs write them, and what turns and rows say under keys that templates do not know.

use qlora_train::config::PromptCompletion;
use qlora_train::data::{ChatTokenizer, DataOptions, UNSUPERVISED, load};
use serde_json::{Value, json};

use crate::tools::{WHOLE, load_row, texts};
use trainer_lab::fixture::*;

/// The remarks on the only row.
#[track_caller]
fn told(row: &Value, template: &str) -> Vec<String> {
    let (data, _) = load_row(row, template).unwrap_or_else(|error| panic!("{row}: {error}"));
    let mut lines = data.report.files[0].notes.lines("line");
    // These templates write no BOS, which gives a note too.
    lines.retain(|line| !line.contains("BOS token"));
    lines
}

fn calling(call: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]},
                        {"role": "tool", "content": "3"}, {"role": "assistant", "content": "three"}]})
}

fn asked(turns: &[Value]) -> Value {
    let mut all = vec![json!({"role": "user", "content": "q"})];
    all.extend_from_slice(turns);
    json!({ "messages": all })
}

const CALL: &str = "{\"name\": \"f\", \"arguments\": {\"x\": \"Oslo\"}}";

#[test]
fn arguments_are_taken_from_every_key_that_programs_have_for_them() {
    let x = json!({"x": "Oslo"});
    for key in ["arguments", "args", "parameters", "input", "action_input"] {
        for call in [
            json!({"name": "f", key: x, "id": "1", "type": "tool_call"}),
            json!({"function": {"name": "f", key: x.to_string()}}),
            json!({"type": "function", "function": {key: x, "name": "f"}, "index": 0}),
            json!({"function": {"name": "f"}, key: x}),
            json!({"function": "f", key: x}),
            json!({"name": "f", "arguments": x.to_string(), key: x}),
        ] {
            let row = calling(&call);
            let learned = texts(&row, WHOLE).1;
            assert!(learned.contains("\"x\": \"Oslo\"") && learned.contains("\"name\": \"f\""), "{call}: {learned}");
            assert!(learned.ends_with("}<|im_end|>three<|im_end|>"), "{call}: {learned}");
            assert_eq!(told(&row, WHOLE), [""; 0], "{call}");
            // Parts that the template leaves out are reported as missing.
            let names = WHOLE.replacen("call.function | tojson", "call.function.name", 1);
            assert_says(&refusal(load_row(&row, &names)), &["`messages[1]`", "`tool_calls`", "\"Oslo\" is missing"]);
        }
        let row = json!({"conversations": [{"from": "human", "value": "q"},
            {"from": "function_call", "value": json!({"name": "f", key: x}).to_string()},
            {"from": "observation", "value": "3"}, {"from": "gpt", "value": "three"}]});
        assert_eq!(texts(&row, WHOLE).1, format!("{CALL}<|im_end|>three<|im_end|>"));
        if key != "arguments" {
            let differ = json!({"function": {"name": "f", "arguments": {}, key: x}});
            let words = ["`messages[1]`.tool_calls[0]", "`arguments` and", key, "differ"];
            assert_says(&refusal(load_row(&calling(&differ), WHOLE)), &words);
        }
    }
    let differ = json!({"name": "g", "function": {"name": "f"}});
    assert_says(&refusal(load_row(&calling(&differ), WHOLE)), &["tool_calls[0] has two `name` that differ"]);
}

#[test]
fn keys_of_calls_that_nothing_reads_are_told() {
    let call = json!({"name": "f", "arguments": {}, "id": "1", "note": "n", "nothing": null, "empty": ""});
    assert_eq!(told(&calling(&call), WHOLE), ["not used: `note` of tool calls"]);
    let call = json!({"function": {"name": "f", "Arguments": {"x": 1}}});
    assert_says(&told(&calling(&call), WHOLE)[0], &["a tool call has the key `Arguments`", "`arguments` is read"]);
}

/// Roles of ms-swift's rows, whose calls at once are turns in a row.
#[test]
fn roles_of_calls_and_results_are_the_same_in_both_forms() {
    let call = |city: &str| json!({"name": "f", "arguments": {"x": city}}).to_string();
    for (caller, result) in [("tool_call", "tool_response"), ("function_call", "observation")] {
        let row = asked(&[
            json!({"role": caller, "content": call("Oslo")}),
            json!({"role": caller, "content": call("Rome")}),
            json!({"role": result, "content": "3"}),
            json!({"role": "assistant", "content": "three"}),
        ]);
        let (text, learned) = texts(&row, WHOLE);
        let calls = format!("{CALL}{}", CALL.replace("Oslo", "Rome"));
        assert_eq!(learned, format!("{calls}<|im_end|>three<|im_end|>"));
        assert!(text.contains("<|im_start|>tool\n3<|im_end|>"), "{text}");
    }
    // A text and its call are one turn, and a result may be an object.
    let announced = asked(&[
        json!({"role": "assistant", "content": "let me"}),
        json!({"role": "tool_call", "content": call("Oslo")}),
        json!({"role": "tool_call", "content": call("Rome")}),
        json!({"role": "tool_response", "content": {"r": [1, 2.5], "s": "é"}}),
        json!({"role": "assistant", "content": "three"}),
    ]);
    let (text, learned) = texts(&announced, WHOLE);
    assert_eq!(learned, format!("let me{CALL}{}<|im_end|>three<|im_end|>", CALL.replace("Oslo", "Rome")));
    assert!(text.contains("<|im_start|>tool\n{\"r\": [1, 2.5], \"s\": \"é\"}<|im_end|>"), "{text}");
    for caller in ["tool_call", "function_call"] {
        let share_gpt = json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "let me"},
            {"from": caller, "value": call("Oslo")}, {"from": caller, "value": call("Rome")},
            {"from": "observation", "value": "3"}, {"from": "gpt", "value": "three"}]});
        assert_eq!(texts(&share_gpt, WHOLE).1, learned, "{caller}");
    }
    let words = asked(&[json!({"role": "tool_call", "content": "call f"})]);
    assert_says(&refusal(load_row(&words, WHOLE)), &["`messages[1]`.content", "list of calls"]);
    let empty = asked(&[json!({"role": "tool_call", "content": ""})]);
    assert_says(&refusal(load_row(&empty, WHOLE)), &["`messages[1]`.content is empty"]);
}

/// A text and its call are one turn, in which both keep their flags.
#[test]
fn a_text_and_its_call_that_weigh_otherwise_are_one_turn() {
    let with = |mut turn: Value, flag: &Value| {
        turn.as_object_mut().unwrap().extend(flag.as_object().unwrap().clone());
        turn
    };
    let (none, off, on) = (json!({}), json!({"train": false}), json!({"train": true}));
    let (all, call, said) = (format!("let me{CALL}<|im_end|>"), format!("{CALL}<|im_end|>"), "let me".to_owned());
    for (of_text, of_call, learned, half) in [
        (&json!({"loss": false}), &none, &call, 0),
        (&off, &on, &call, 0),
        (&none, &off, &said, 0),
        (&json!({"weight": 2}), &json!({"weight": 0}), &said, 0),
        (&on, &none, &all, 0),
        (&json!({"weight": 0.5}), &none, &all, "let me".len()),
        (&none, &json!({"loss_weight": 0.5}), &all, CALL.len() + 1),
        (&json!({"weight": 0.5}), &json!({"weight": 0.5}), &all, all.len() - "<|im_end|>".len() + 1),
    ] {
        let rows = [
            asked(&[
                with(json!({"role": "assistant", "content": "let me"}), of_text),
                with(json!({"role": "tool_call", "content": CALL}), of_call),
            ]),
            json!({"conversations": [{"from": "human", "value": "q"},
                with(json!({"from": "gpt", "value": "let me"}), of_text),
                with(json!({"from": "function_call", "value": CALL}), of_call)]}),
        ];
        for row in rows {
            let (text, supervised) = texts(&row, WHOLE);
            assert!(text.contains(&format!("assistant\n{all}")), "{row}: {text}");
            assert_eq!(supervised, *learned, "{row}");
            let (data, _) = load_row(&row, WHOLE).unwrap();
            // A token is a byte, or the end of the turn.
            assert_eq!(data.rows[0].weights.iter().filter(|&&weight| weight == 0.5).count(), half, "{row}");
        }
    }
    // The reasoning may contain the answer.
    let row = asked(&[
        json!({"role": "assistant", "content": "let me", "reasoning_content": "let me see", "train": false}),
        json!({"role": "tool_call", "content": CALL}),
    ]);
    assert_eq!(texts(&row, WHOLE).1, call);
    // Calls in a row are not distinguished.
    let calls = |before: &[Value], flag: &Value| {
        let mut turns = before.to_vec();
        turns.push(with(json!({"role": "tool_call", "content": CALL}), flag));
        turns.push(json!({"role": "tool_call", "content": CALL}));
        refusal(load_row(&asked(&turns), WHOLE))
    };
    let words = ["is a call with no flag", "weighs 1", "the call before it weighs 0", "the same flag"];
    assert_says(&calls(&[], &off), &[&["`messages[2]`"][..], &words].concat());
    assert_says(
        &calls(&[json!({"role": "assistant", "content": "a"})], &off),
        &[&["`messages[3]`"][..], &words].concat(),
    );
    let write = "{{ m.content or '' }}";
    let end = "call.function | tojson }}{% endfor %}";
    let calls_first = WHOLE.replacen(write, "", 1).replacen(end, &format!("{end}{write}"), 1);
    let row = asked(&[
        json!({"role": "assistant", "content": "let me", "train": false}),
        json!({"role": "tool_call", "content": CALL}),
    ]);
    let words = ["`messages[1]`", "flags that differ", "does not write the calls behind the text"];
    assert_says(&refusal(load_row(&row, &calls_first)), &words);
}

#[test]
fn the_system_of_a_row_may_be_a_list_of_parts() {
    let row = |system: Value| {
        let mut row = asked(&[json!({"role": "assistant", "content": "a"})]);
        row["system"] = system;
        row
    };
    let part = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let whole = texts(&row(json!("be brief")), WHOLE);
    assert_eq!(texts(&row(json!([part("be "), part("brief")])), WHOLE), whole);
    assert_eq!(told(&row(json!([part("be brief")])), WHOLE), [""; 0]);
    let shown = json!([{"type": "image", "source": {}}]);
    assert_says(&refusal(load_row(&row(shown), WHOLE)), &["`system`[0]", "\"image\"", "only text"]);
}

/// Anthropic's form of calls and results.
#[test]
fn results_among_the_parts_of_a_turn_are_turns_of_the_tool() {
    let write = "{{ m.content or '' }}";
    let by_id = WHOLE.replacen(write, &format!("{{{{ m.tool_call_id or '' }}}}:{write}"), 1);
    let used = |id: &str, city: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {"x": city}});
    let said = |text: &str| json!({"type": "text", "text": text});
    let returned = |id: &str, content: Value| json!({"type": "tool_result", "tool_use_id": id, "content": content});
    let row = |answered: &[Value]| {
        asked(&[
            json!({"role": "assistant", "content": [said("let me"), used("one", "Oslo"), used("two", "Rome")]}),
            json!({"role": "user", "content": answered}),
            json!({"role": "assistant", "content": [said("three")]}),
        ])
    };
    let call = |id: &str, city: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": {"x": city}}});
    let same = |between: &[Value]| {
        let calls = json!([call("one", "Oslo"), call("two", "Rome")]);
        let mut turns = vec![json!({"role": "assistant", "content": "let me", "tool_calls": calls})];
        turns.extend_from_slice(between);
        turns.push(json!({"role": "assistant", "content": "three"}));
        asked(&turns)
    };
    let tool = |id: &str, content: &str| json!({"role": "tool", "tool_call_id": id, "content": content});
    let user = |content: &str| json!({"role": "user", "content": content});
    for (answered, between) in [
        (
            vec![returned("one", json!("3")), returned("two", json!([said("4"), said("5")]))],
            vec![tool("one", "3"), tool("two", "45")],
        ),
        (
            vec![returned("two", json!("4")), said("and"), said(" so?"), returned("one", json!(null)), said("go on")],
            vec![tool("two", "4"), user("and so?"), tool("one", ""), user("go on")],
        ),
        (vec![returned("one", json!({"r": [1, 2.5]}))], vec![tool("one", "{\"r\": [1, 2.5]}")]),
        (vec![said("wait"), returned("one", json!("3"))], vec![user("wait"), tool("one", "3")]),
    ] {
        let (text, learned) = texts(&row(&answered), &by_id);
        assert_eq!((text.clone(), learned.clone()), texts(&same(&between), &by_id));
        let turn = |turn: &Value| {
            let part = |key: &str| turn[key].as_str().unwrap_or_default().to_owned();
            format!("<|im_start|>{}\n{}:{}<|im_end|>\n", part("role"), part("tool_call_id"), part("content"))
        };
        assert!(text.contains(&between.iter().map(turn).collect::<String>()), "{text}");
        assert!(learned.ends_with(":three<|im_end|>") && learned.contains("let me{\"name\": \"f\""), "{learned}");
        assert_eq!(told(&row(&answered), &by_id), [""; 0]);
    }
    let share_gpt = json!({"conversations": [{"from": "human", "value": "q"},
        {"from": "gpt", "value": [said("let me"), used("one", "Oslo"), used("two", "Rome")]},
        {"from": "human", "value": [returned("one", json!("3")), said("so?")]}, {"from": "gpt", "value": "three"}]});
    assert_eq!(texts(&share_gpt, &by_id), texts(&same(&[tool("one", "3"), user("so?")]), &by_id));
    let failed = json!({"type": "tool_result", "tool_use_id": "one", "content": "no such city", "is_error": true});
    assert_says(&told(&row(&[failed]), &by_id).join(" "), &["`is_error: true`", "its text alone"]);

    let image = json!({"type": "image", "source": {"type": "base64", "data": "x"}});
    for (answered, words) in [
        (vec![returned("one", json!([said("a"), image]))], ["`messages[2]`.content[0].content[1]", "\"image\""]),
        (vec![returned("one", json!("3")), said("a"), image], ["`messages[2]`.content[2]", "\"image\""]),
        (vec![json!({"type": "tool_result", "tool_use_id": 7, "content": "3"})], [".content[0].tool_use_id", "string"]),
        (vec![json!({"type": "tool_result", "output": "3"})], [".content[0] has no `content`", "`output`"]),
    ] {
        assert_says(&refusal(load_row(&row(&answered), &by_id)), &words);
    }
    let own = asked(&[json!({"role": "assistant", "content": [returned("one", json!("3"))]})]);
    assert_says(
        &refusal(load_row(&own, WHOLE)),
        &["`messages[1]`.content[0] is a tool_result", "the role is assistant"],
    );

    let turns = [json!({"role": "assistant", "content": "a"})];
    let schema = json!({"type": "object", "properties": {"x": {"type": "string"}}});
    let mut theirs = asked(&turns);
    theirs["tools"] =
        json!([{"name": "f", "description": "d", "input_schema": schema, "cache_control": {"type": "ephemeral"}}]);
    let mut ours = asked(&turns);
    ours["tools"] = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": schema}}]);
    assert_eq!(texts(&theirs, WHOLE), texts(&ours, WHOLE));
}

#[test]
fn what_is_thought_before_a_call_is_its_reasoning() {
    let call = json!({"name": "f", "arguments": {"x": "Oslo"}});
    for value in [format!("<think>hm</think>{call}"), format!("<think>\nhm\n</think>\n\n{call}")] {
        let row = json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": value},
                                           {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a"}]});
        assert_eq!(texts(&row, WHOLE).1, format!("[hm]{CALL}<|im_end|>a<|im_end|>"));
    }
    let twice = asked(&[json!({"role": "tool_call", "content": format!("<think>a</think>{call}"), "thinking": "b"})]);
    assert_says(&refusal(load_row(&twice, WHOLE)), &["`messages[1]` has `thinking`", "keep one of the two"]);
}

#[test]
fn calls_under_other_keys_are_taken_and_thoughts_are_told() {
    let call = json!({"name": "f", "input": {"x": "Oslo"}});
    for key in ["function_calls", "tool_use", "tool_call", "function_call"] {
        let row = asked(&[json!({"role": "assistant", "content": "", key: [call]})]);
        assert_eq!(texts(&row, WHOLE).1, format!("{CALL}<|im_end|>"), "{key}");
        let two = asked(&[json!({"role": "assistant", "content": "", key: [call], "tool_calls": [call]})]);
        assert_says(&refusal(load_row(&two, WHOLE)), &["`messages[1]` has `tool_calls` and", key]);
    }
    let part = asked(&[
        json!({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"x": "Oslo"}}]}),
    ]);
    assert_eq!(texts(&part, WHOLE).1, format!("{CALL}<|im_end|>"));
    for key in ["thought", "thoughts", "think", "reasoning_text", "reasoningText"] {
        let said = told(&asked(&[json!({"role": "assistant", "content": "a", key: "hm"})]), CHATML);
        assert_says(&said[0], &["warning: ", &format!("`{key}`"), "left out", "`reasoning_content`"]);
    }
    let details = json!([{"type": "reasoning.text", "text": "hm"}]);
    let mut turn = json!({"role": "assistant", "content": "a", "reasoning_details": details});
    assert_says(&told(&asked(&[turn.clone()]), WHOLE)[0], &["`reasoning_details`", "left out"]);
    // They say the reasoning once more.
    turn["reasoning"] = "hm".into();
    assert_eq!(told(&asked(&[turn]), WHOLE), ["not used: `reasoning_details` of turns"]);
}

#[test]
fn tools_of_a_system_turn_are_those_of_the_row() {
    let tools = json!([{"type": "function", "function": {"name": "look", "parameters": {}}}]);
    let row = |tools_of_turn: &Value| {
        json!({"messages": [{"role": "system", "content": "s", "tools": tools_of_turn},
                            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    };
    let mut expected = row(&Value::Null);
    expected["tools"] = tools.clone();
    let expected = texts(&expected, WHOLE);
    assert!(expected.0.contains("\"name\": \"look\""), "{}", expected.0);
    for own in [tools.clone(), json!(tools.to_string())] {
        assert_eq!(texts(&row(&own), WHOLE), expected);
        assert_eq!(told(&row(&own), WHOLE), [""; 0]);
        let mut both = row(&own);
        both["tools"] = tools.clone();
        assert_eq!(texts(&both, WHOLE), expected);
        both["tools"] = json!([{"name": "other"}]);
        assert_says(&refusal(load_row(&both, WHOLE)), &["a system turn has `tools` that differ"]);
    }
    let of_user =
        json!({"messages": [{"role": "user", "content": "q", "tools": tools}, {"role": "assistant", "content": "a"}]});
    assert_says(&refusal(load_row(&of_user, WHOLE)), &["`messages[0]` has `tools`", "the role is user"]);
    // A value that defines no tool is ignored, except in a system turn.
    for used in [json!("look"), json!(["look"])] {
        let turn = json!({"role": "assistant", "content": "a", "tools": used});
        assert_eq!(told(&asked(&[turn]), WHOLE), ["not used: `tools` of turns"]);
        assert_says(&refusal(load_row(&row(&used), WHOLE)), &["`messages[0]`: `tools"]);
    }
}

/// LLaMA-Factory's rows define bare functions and its templates write tools; transformers passes on what a row has.
#[test]
fn bare_tools_are_wrapped_in_share_gpt_rows_alone() {
    let bare = json!([{"name": "look", "parameters": {}}]);
    let wrapped = json!([{"type": "function", "function": bare[0]}]);
    let share = |tools: &Value| json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": tools});
    let messages = |tools: &Value| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": tools});
    let expected = texts(&messages(&wrapped), WHOLE);
    for tools in [&bare, &json!(bare.to_string()), &wrapped] {
        assert_eq!(texts(&share(tools), WHOLE), expected, "{tools}");
    }
    assert!(texts(&messages(&bare), WHOLE).0.starts_with("<|im_start|>system\n{\"name\": \"look\""));
    // A template that reads the wrapped form alone.
    let strict = WHOLE.replacen(
        "{{ tool | tojson }}",
        "{% for key, value in tool.function.items() %}{{ value | tojson }}{% endfor %}",
        1,
    );
    texts(&share(&bare), &strict);
    let words = ["line 1", "the row's `tools` are bare functions", "\"type\": \"function\""];
    assert_says(&refusal(load_row(&messages(&bare), &strict)), &words);
}

/// Hermes' rows have the marks that Qwen's templates write.
#[test]
fn a_result_in_marks_that_the_template_writes_too_is_told() {
    let marking = WHOLE.replacen(
        "{{ m.content or '' }}",
        r"{% if m.role == 'tool' %}{{ '<tool_response>\n' + m.content + '\n</tool_response>' }}{% else %}{{ m.content or '' }}{% endif %}",
        1,
    );
    let row = |result: &str| {
        asked(&[json!({"role": "tool", "content": result}), json!({"role": "assistant", "content": "a"})])
    };
    let marked = row("<tool_response>\nrain\n</tool_response>");
    assert_says(&told(&marked, &marking)[0], &["warning: ", "a tool turn begins with <tool_response>", "once more"]);
    assert_eq!(told(&marked, WHOLE), [""; 0]);
    assert_eq!(told(&row("rain"), &marking), [""; 0]);
}

#[test]
fn a_call_that_stands_in_the_text_of_its_turn_too_is_told() {
    let row = |content: &str| {
        let call = json!({"name": "f", "arguments": {"x": "Oslo"}});
        asked(&[json!({"role": "assistant", "content": content, "tool_calls": [call]})])
    };
    let marked = format!("<tool_call>\n{CALL}\n</tool_call>");
    for content in [&marked[..], CALL, "<function=f><parameter=x>Oslo</parameter></function>", "[f(x=\"Oslo\")]"] {
        let said = told(&row(content), WHOLE);
        assert_eq!(said.len(), 1, "{content}: {said:?}");
        assert_says(&said[0], &["warning: ", "beside `tool_calls`", "learned twice"]);
    }
    for content in ["", "I call f for Oslo <now>", "{\"name\": \"f\"}", "\"f\" for Oslo"] {
        assert_eq!(told(&row(content), WHOLE), [""; 0], "{content}");
    }
}

#[test]
fn parts_that_say_two_things_or_show_a_picture_are_refused() {
    let row =
        |part: Value| json!({"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]});
    for (part, words) in [
        (json!({"type": "text", "text": "a", "content": "b"}), ["`text` and `content`", "differ"]),
        (json!({"type": "text", "text": "a", "image": "a.png"}), [".content[0].image", "only text"]),
        (json!({"type": "text", "text": "a", "image_url": {"url": "x"}}), [".content[0].image_url", "only text"]),
    ] {
        assert_says(&refusal(load_row(&row(part), CHATML)), &["`messages[0]`", words[0], words[1]]);
    }
    for part in [
        json!({"type": "text", "text": "a", "content": "a", "value": ""}),
        json!({"type": "text", "text": "a", "image": null, "image_url": null}),
    ] {
        assert_eq!(told(&row(part), CHATML), [""; 0]);
    }
    let thoughts =
        asked(&[json!({"role": "assistant", "content": [{"type": "thinking", "thinking": "a", "text": "b"}]})]);
    assert_says(&refusal(load_row(&thoughts, WHOLE)), &["`text` and `thinking`", "differ"]);
}

#[test]
fn more_flags_and_masks_are_warned_of_or_followed() {
    for key in ["should_train", "do_train", "train_on_turn", "include_in_loss", "weights", "trainig", "weigth"] {
        let said = told(&asked(&[json!({"role": "assistant", "content": "a", key: false})]), CHATML);
        assert_says(&said[0], &["warning: ", &format!("`{key}`"), "nothing reads"]);
    }
    for (key, value) in [("height", json!(180)), ("should_train", json!(true)), ("trainig", json!(true))] {
        let said = told(&asked(&[json!({"role": "assistant", "content": "a", key: value})]), CHATML);
        assert_eq!(said, [format!("not used: `{key}` of turns")]);
    }
    let masked = json!({"input_ids": [1, 2, 3, 4], "assistant_mask": [0, 0, 1, 1]});
    assert_eq!(load_one(masked.to_string(), None).unwrap().rows[0].labels, [-100, -100, 3, 4]);
    let told = |key: &str, value: Value, labels: Value| {
        let row = json!({"input_ids": [1, 2, 3, 4], "labels": labels, key: value});
        load_one(row.to_string(), None).unwrap().report.files[0].notes.lines("line")
    };
    for (key, value) in [("prompt_length", json!(2)), ("source_len", json!(2)), ("response_mask", json!([0, 0, 1, 1]))]
    {
        assert_says(&told(key, value, Value::Null)[0], &["warning: ", &format!("`{key}`"), "nothing reads"]);
    }
    let labels = json!([-100, -100, 3, 4]);
    assert_eq!(told("prompt_length", json!(2), labels), ["not used: `prompt_length` of rows"]);
    assert_eq!(
        told("special_tokens_mask", json!([0, 0, 0, 1]), Value::Null),
        ["not used: `special_tokens_mask` of rows"]
    );
}

#[test]
fn a_part_of_an_answer_that_a_template_cuts_is_refused() {
    let cutting = |cut: &str| CHATML.replace("message['content']", &format!("message['content']{cut}"));
    let row = |user: &str, answer: &str| json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]});
    let at_mark = cutting(".split('###')[0]");
    let why = refusal(load_row(&row("q", "a long ### answer"), &at_mark));
    assert_says(&why, &["line 1", "`messages[1]`", "leaves out a part", "\"answer\""]);
    let said = told(&row("a ### b", "ans"), &at_mark);
    assert_says(&said[0], &["warning: ", "leaves out a part of what the user says"]);
    // Reasoning may be cut, text outside of it may not.
    let answer = cutting(".split('</think>')[-1]");
    let why = refusal(load_row(&row("q", "<think>a</think>x<think>b</think>y"), &answer));
    assert_says(&why, &["`messages[1]`", "leaves out a part", "\"x\""]);
    assert_says(&told(&row("q", "<think>a</think>y"), &answer)[0], &["leaves out what the assistant thinks"]);
    let word = "Use the tag `</think>` to end.";
    let why = refusal(load_row(&row("q", word), &answer));
    assert_says(&why, &["`messages[1]`", "leaves out a part", "Use the tag"]);
    assert!(!why.contains("keeps it"), "{why}");
    let splitting = cutting(".replace('</think>', '\\n</think>\\n\\n')");
    assert_says(&told(&row("q", word), &splitting)[0], &["warning: ", "`messages[1]`", "for a thought"]);
    // Written otherwise, and whole.
    for way in [".replace('\\n', ' ')", " | title", ".strip()"] {
        texts(&row("q", "so\nit < is"), &cutting(way));
    }
}

#[test]
fn nothing_behind_the_end_of_the_last_turn_is_learned() {
    let turn = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}";
    let prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let by_system = "{% if messages[0].role == 'system' %}{{ 'Remember: ' + messages[0].content }}{% endif %}";
    let as_turn = "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\nAgain<|im_end|>\n' }}{% endif %}";
    let by_tools = "{% if tools %}{{ 'Tools: ' + tools[0].name }}{% endif %}";
    let by_variable = "{% if footer is defined %}{{ footer }}{% endif %}";
    let call = json!({"name": "f", "arguments": {"x": "Oslo"}});
    for footer in [by_system, as_turn, by_tools, by_variable] {
        for template in [format!("{turn}{footer}{prompt}"), format!("{turn}{prompt}{footer}")] {
            for (answer, learned) in [
                (json!({"role": "assistant", "content": "a"}), "a<|im_end|>".to_owned()),
                (json!({"role": "assistant", "content": "so", "tool_calls": [call]}), format!("so{CALL}<|im_end|>")),
            ] {
                let mut row =
                    json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, answer]});
                if footer == by_tools {
                    row["tools"] = json!([{"name": "look"}]);
                }
                if footer == by_variable {
                    row["chat_template_kwargs"] = json!({"footer": "the end of it"});
                }
                // With tools the template has to write them, and a turn like the others' end hides behind calls.
                if footer == as_turn && learned.contains('{') {
                    continue;
                }
                let (data, tokenizer) = load_row(&row, &template).unwrap_or_else(|error| panic!("{template}: {error}"));
                let labels = data.rows[0].labels.iter().filter(|&&l| l != UNSUPERVISED).map(|&l| l as u32);
                let supervised: Vec<u32> = labels.collect();
                assert_eq!(tokenizer.decode(&supervised, false).unwrap(), learned, "{template}");
                assert_eq!(data.report.open_ended, 0, "{template}");
            }
        }
    }
}

/// The text of the answer may stand in the thought, which ends as a turn does.
#[test]
fn an_answer_that_its_thought_says_too_is_learned_whole() {
    let template = r"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}{{ m.reasoning_content + '<|im_end|>\n<|im_start|>assistant\n' }}{% endif %}{{ m.content | replace('holder', 'Holder') }}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let row = asked(&[json!({"role": "assistant", "content": "four", "reasoning_content": "two and two is four"})]);
    let learned = "two and two is four<|im_end|>\n<|im_start|>assistant\nfour<|im_end|>";
    assert_eq!(texts(&row, template).1, learned);
}

/// A tokenizer with a token of its own that ends no turn.
fn with_call_token(template: &str) -> ChatTokenizer {
    let dir = model_dir(Some(template));
    let mut file = tokenizer_json();
    let tokens = file["added_tokens"].as_array_mut().unwrap();
    let mut token = tokens.last().unwrap().clone();
    token["id"] = json!(VOCAB_SIZE);
    token["content"] = "</tool_call>".into();
    tokens.push(token);
    write_json(dir.path(), "tokenizer.json", &file);
    ChatTokenizer::open(dir.path(), None).unwrap()
}

#[test]
fn only_tokens_that_end_a_turn_stand_for_the_eos() {
    let tokenizer = with_call_token(CHATML);
    let eos = tokenizer.eos_token_id().unwrap();
    let last = |completion: &str| {
        let tokens = tokenizer.encode_completion("q", completion).unwrap();
        (tokens.input_ids.last() == Some(&eos), tokens.open_ended)
    };
    for completion in ["<|im_start|>", "a</tool_call>", "[INST]", "a"] {
        assert_eq!(last(completion), (true, 0), "{completion}");
    }
    for completion in ["a<|im_end|>", "a<|eot|>"] {
        assert_eq!(last(completion), (false, 0), "{completion}");
    }
    // A template without an end of turns leaves the answer open, whatever the answer ends with.
    let open = with_call_token(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    );
    for (answer, count) in [("a</tool_call>", 1), ("a", 1), ("a<|im_end|>", 0)] {
        assert_eq!(
            open.render_chat(&turns(&[("user", "q"), ("assistant", answer)])).unwrap().open_ended,
            count,
            "{answer}"
        );
    }
}

#[test]
fn a_thought_that_prompt_and_row_both_open_is_asked_as_it_was_trained() {
    let opening = CHATML.replace("<|im_start|>assistant\\n", "<|im_start|>assistant\\n<think>\\n");
    let row = |answer: &str| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]});
    let warned = |rows: &str| load_one(rows, Some(&chat_tokenizer(&opening))).unwrap().report.warnings;
    let thinking = row("<think>\nhm\n</think>\n\na").to_string();
    assert_eq!(warned(&thinking), [""; 0]);
    assert_says(&warned(&row("a").to_string())[0], &["otherwise than it was trained"]);
    assert_says(&warned(&format!("{thinking}\n{}", row("a")))[0], &["otherwise than it was trained"]);
}

#[test]
fn prompts_that_are_texts_alone_are_told_of_and_may_have_tools_in_a_chat() {
    let remarks = |row: &Value| load_row(row, WHOLE).unwrap().0.report.remarks;
    let of_texts = json!({"prompt": "q", "completion": "a"});
    let of_turns =
        json!({"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]});
    assert_says(&remarks(&of_texts)[0], &["prompt + completion rows of texts"]);
    assert_eq!(remarks(&of_turns), [""; 0]);
    let with_tools = json!({"prompt": "q", "completion": "a", "tools": [{"name": "look"}]});
    let why = refusal(load_row(&with_tools, WHOLE));
    assert_says(&why, &["tool definitions", "plain text", "`prompt_completion: chat`"]);
    let tokenizer = chat_tokenizer(WHOLE);
    let options = DataOptions { prompt_completion: PromptCompletion::Chat, ..options() };
    let read = |row: &Value| {
        let rows = file("rows.jsonl", row.to_string());
        load(std::slice::from_ref(&rows.path), Some(&tokenizer), &options).unwrap()
    };
    let data = read(&with_tools);
    let text = tokenizer.decode(&data.rows[0].input_ids, false).unwrap();
    assert!(text.starts_with("<|im_start|>system\n{\"name\": \"look\"}<|im_end|>\n<|im_start|>user\nq"), "{text}");
    assert!(!data.report.to_string().contains("list of calls"), "{}", data.report);
    // xLAM's completions are calls.
    let calls = json!([{"name": "look", "arguments": {}}]).to_string();
    let data = read(&json!({"prompt": "q", "completion": calls, "tools": [{"name": "look"}]}));
    assert_says(&data.report.to_string(), &["warning: ", "the completion is a list of calls", "`tool_calls`"]);
}
