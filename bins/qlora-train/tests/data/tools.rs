//! Tool definitions, calls and results, reasoning, and what is said where a template leaves any of it out.

use qlora_train::data::{ChatTokenizer, Dataset, UNSUPERVISED};
use serde_json::{Value, json};

use trainer_lab::fixture::*;

/// Writes everything that a turn may have.
pub const WHOLE: &str = r"{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}{{ '[' + m.reasoning_content + ']' }}{% endif %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub fn load_row(row: &Value, template: &str) -> qlora_train::error::Result<(Dataset, ChatTokenizer)> {
    let tokenizer = chat_tokenizer(template);
    Ok((load_one(row.to_string(), Some(&tokenizer))?, tokenizer))
}

/// The whole text, and what of it is supervised.
#[track_caller]
pub fn texts(row: &Value, template: &str) -> (String, String) {
    let (data, tokenizer) = load_row(row, template).unwrap_or_else(|error| panic!("{row}: {error}"));
    let labels = data.rows[0].labels.iter().filter(|&&l| l != UNSUPERVISED).map(|&l| l as u32);
    let supervised: Vec<u32> = labels.collect();
    (tokenizer.decode(&data.rows[0].input_ids, false).unwrap(), tokenizer.decode(&supervised, false).unwrap())
}

fn calling(call: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "q"}, call, {"role": "tool", "content": "3"},
                        {"role": "assistant", "content": "three"}]})
}

const CALL: &str = "{\"name\": \"f\", \"arguments\": {\"x\": \"Oslo\"}}<|im_end|>";

#[test]
fn calls_in_every_form_are_written_and_learned_alike() {
    let function = json!({"name": "f", "arguments": {"x": "Oslo"}});
    let as_text = json!({"name": "f", "arguments": "{\"x\": \"Oslo\"}"});
    let forms = [
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": function}]}),
        json!({"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}),
        json!({"role": "assistant", "content": "", "tool_calls": [{"function": as_text}]}),
        json!({"role": "assistant", "content": null, "tool_calls": [function], "function_call": null, "refusal": null}),
        json!({"role": "assistant", "content": null, "function_call": as_text}),
        json!({"role": "assistant", "content": null, "tool_calls": [function], "reasoning_content": null}),
    ];
    for form in forms {
        let (text, supervised) = texts(&calling(form.clone()), WHOLE);
        assert_eq!(supervised, format!("{CALL}three<|im_end|>"), "{form}");
        assert!(!text.contains("None") && text.contains("<|im_start|>tool\n3<|im_end|>"), "{text}");
    }
    let turns = |call: Value| {
        json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": call},
                                 {"from": "observation", "value": "3"}, {"from": "gpt", "value": "three"}]})
    };
    for call in [json!(function.to_string()), json!(json!([function]).to_string()), json!(function.clone())] {
        assert_eq!(texts(&turns(call), WHOLE).1, format!("{CALL}three<|im_end|>"));
    }
    for role in ["function", "ipython", "tool"] {
        let row = json!({"messages": [{"role": role, "content": "3"}, {"role": "assistant", "content": "a"}]});
        assert!(texts(&row, WHOLE).0.starts_with("<|im_start|>tool\n3"), "{role}");
    }
}

/// Parts as newer data sets of LLaMA-Factory have them.
#[test]
fn parts_that_are_thoughts_and_calls_stand_for_the_keys_of_turns() {
    let call = json!({"name": "f", "arguments": {"x": "Oslo"}});
    let turn = |content: Value| calling(json!({"role": "assistant", "content": content}));
    for (thought, called) in [
        (json!({"type": "reasoning", "value": "hm"}), json!({"type": "tool_call", "value": call.to_string()})),
        (json!({"type": "thinking", "thinking": "hm"}), json!({"type": "tool_call", "value": call})),
        (json!({"type": "reasoning", "text": "hm"}), json!({"type": "tool_call", "value": json!([call]).to_string()})),
    ] {
        let (_, supervised) = texts(&turn(json!([thought, called])), WHOLE);
        assert_eq!(supervised, format!("[hm]{CALL}three<|im_end|>"));
        let said = json!({"type": "text", "value": "so "});
        let (_, supervised) = texts(&turn(json!([thought, said, called])), WHOLE);
        assert_eq!(supervised, format!("[hm]so {CALL}three<|im_end|>"));
        for (parts, words) in [
            (json!([called, thought]), ["content[1]", "behind a part of another type"]),
            (json!([{"type": "reasoning"}, said]), ["content[0]", "expected what it holds"]),
            (json!([{"type": "tool_call", "value": "{"}]), ["content[0]", "expected what it holds"]),
            (json!([{"type": "reasoning", "value": "hm", "train": false}]), ["content[0]", "weight of its own"]),
        ] {
            assert_says(&refusal(load_row(&turn(parts), WHOLE)), &["`messages[1]`.", words[0], words[1]]);
        }
    }
    let twice =
        json!({"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}], "reasoning_content": "so"});
    assert_says(&refusal(load_row(&calling(twice), WHOLE)), &["`messages[1]` has `reasoning_content` and parts"]);
}

/// The flag of a text is none of the calls that stand behind it.
#[test]
fn calls_behind_parts_that_are_not_learned_are_learned() {
    let part = |text: &str, flag: Value| json!({"type": "text", "text": text, "weight": flag});
    let call = json!({"type": "tool_use", "id": "1", "name": "f", "input": {"x": "Oslo"}});
    let (off, on) = (json!(0), Value::Null);
    for (parts, learned) in [
        (vec![part("so ", off.clone())], CALL.to_owned()),
        (vec![part("well, ", on.clone()), part("so ", off.clone())], format!("well, {CALL}")),
        (vec![part("well, ", off.clone()), part("so ", on)], format!("so {CALL}")),
        (vec![part("", off.clone())], CALL.to_owned()),
    ] {
        let among: Vec<Value> = parts.iter().cloned().chain([call.clone()]).collect();
        let beside = json!({"role": "assistant", "content": parts, "tool_calls": [call]});
        for turn in [json!({"role": "assistant", "content": among}), beside] {
            assert_eq!(texts(&calling(turn.clone()), WHOLE).1, format!("{learned}three<|im_end|>"), "{turn}");
        }
    }
    // The turn's flag is that of all of it.
    let whole = json!({"role": "assistant", "train": false, "content": [part("so ", off), call]});
    assert_eq!(texts(&calling(whole), WHOLE).1, "three<|im_end|>");
}

#[test]
fn calls_that_are_none_are_refused() {
    for (turn, parts) in [
        (
            json!({"role": "assistant", "content": null, "tool_calls": "x"}),
            ["tool_calls is the string", "list of calls"],
        ),
        (
            json!({"role": "assistant", "content": null, "tool_calls": [7]}),
            ["tool_calls[0] is the number 7", "function"],
        ),
        (json!({"role": "assistant", "content": null, "tool_calls": [{"function": {}}]}), ["tool_calls[0]", "no name"]),
        (json!({"role": "user", "content": "", "tool_calls": [{"name": "f"}]}), ["only the assistant", "user"]),
        (
            json!({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}], "function_call": {"name": "f"}}),
            ["`tool_calls` and `function_call`", "keep one"],
        ),
    ] {
        let Err(error) = load_row(&calling(turn.clone()), WHOLE) else { panic!("{turn} was taken") };
        assert_says(&error.to_string(), &parts);
    }
    let words =
        json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "call f"}]});
    assert_says(&refusal(load_row(&words, WHOLE)), &["`conversations[1]`.value", "list of calls"]);
}

#[test]
fn tools_may_be_a_list_or_a_text_and_empty_ones_are_none() {
    let row = |tools: Value| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": tools});
    let share = |tools: Value| json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": tools});
    for none in [json!(""), json!("[]"), json!(" [] "), json!([]), json!({}), json!("null"), Value::Null] {
        for row in [row(none.clone()), share(none.clone())] {
            let (text, supervised) = texts(&row, WHOLE);
            assert_eq!(
                (text.as_str(), supervised.as_str()),
                ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n", "a<|im_end|>")
            );
        }
    }
    let tool = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
    let wrapped = json!({"type": "function", "function": tool});
    for (tools, one) in [
        (json!([tool]), &tool),
        (json!(json!([tool]).to_string()), &tool),
        (json!(tool.to_string()), &tool),
        (json!([tool.to_string()]), &tool),
        (json!([wrapped]), &wrapped),
    ] {
        let (text, _) = texts(&row(tools), WHOLE);
        let name = one.get("function").unwrap_or(one)["name"].as_str().unwrap();
        assert!(text.starts_with("<|im_start|>system\n{") && text.contains(name), "{text}");
        assert_eq!(text.contains("\"type\": \"function\""), one == &wrapped, "{text}");
    }
    for (wrong, part) in [(json!(7), "the number 7"), (json!("call me"), "the string"), (json!([7]), "`tools[0]`")] {
        assert_says(&refusal(load_row(&row(wrong), WHOLE)), &["`tools", part]);
    }
}

#[test]
fn what_a_template_does_not_write_of_an_answer_is_refused() {
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "Oslo"}}}]});
    let announced = json!({"role": "assistant", "content": "I call f for Oslo", "tool_calls": [{"function": {"name": "f", "arguments": {"x": "Oslo"}}}]});
    let thought = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "because"}]});
    let tools = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{"name": "f"}]});
    for template in [CHATML, LLAMA3, CLOSING] {
        for turn in [&call, &announced] {
            assert_says(
                &refusal(load_row(&calling(turn.clone()), template)),
                &["`messages[1]`", "does not write", "`tool_calls`"],
            );
        }
        for key in ["reasoning_content", "thinking", "reasoning"] {
            let mut row = thought.clone();
            let value = row["messages"][1].as_object_mut().unwrap().remove("reasoning_content").unwrap();
            row["messages"][1][key] = value;
            assert_says(&refusal(load_row(&row, template)), &["`messages[1]`", "reasoning", "remove the key"]);
            assert_eq!(texts(&row, WHOLE).1, "[because]a<|im_end|>");
        }
        assert_says(&refusal(load_row(&tools, template)), &["line 1", "`tools`", "remove the key"]);
    }
    let two = json!({"messages": [{"role": "user", "content": "q"},
                                  {"role": "assistant", "content": "a", "reasoning": "x", "thinking": "y"}]});
    assert_says(&refusal(load_row(&two, WHOLE)), &["`thinking` and `reasoning`", "differ"]);
}

/// Numbers and truth values are said as texts are, and twice is not once.
#[test]
fn a_call_of_which_a_template_leaves_out_a_part_is_refused() {
    let names = WHOLE.replacen("call.function | tojson", "'CALL ' + call.function.name", 1);
    let first = WHOLE.replacen("m.tool_calls or []", "(m.tool_calls or [])[:1]", 1);
    let called = |calls: Value| calling(json!({"role": "assistant", "content": "", "tool_calls": calls}));
    let add = |a: Value| json!({"name": "add", "arguments": {"a": a}});
    for argument in
        [json!(17), json!(1.5), json!(true), json!(false), json!([3]), json!({"deep": {"er": 4}}), json!("x y")]
    {
        let row = called(json!([add(argument.clone())]));
        assert_says(&refusal(load_row(&row, &names)), &["`messages[1]`", "does not write", "`tool_calls`"]);
        texts(&row, WHOLE);
        for other in [argument, json!(0)] {
            let row = called(json!([add(json!(0)), add(other)]));
            assert_says(&refusal(load_row(&row, &first)), &["`messages[1]`", "does not write", "`tool_calls`"]);
            texts(&row, WHOLE);
        }
    }
    // Values as a template writes them without `tojson`.
    let printed = WHOLE.replacen("call.function | tojson", "call.function.name ~ ' ' ~ call.function.arguments.a", 1);
    for argument in [json!(true), json!(17), json!(-2.5)] {
        texts(&called(json!([add(argument)])), &printed);
    }
    // A part of a longer number is no number.
    let other = WHOLE.replacen("call.function | tojson", "call.function.name + ' 170 1.7 x17'", 1);
    assert_says(&refusal(load_row(&called(json!([add(json!(17))])), &other)), &["\"17\" is missing"]);
    // A call without arguments, or with empty ones.
    texts(&called(json!([{"name": "now"}])), &names);
    texts(&called(json!([add(json!(""))])), &names);
}

#[test]
fn numbers_of_calls_are_written_as_python_writes_them() {
    let written = |number: &str| {
        let row = format!(
            r#"{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "", "tool_calls": [{{"name": "f", "arguments": {{"x": {number}}}}}]}}]}}"#
        );
        let row: Value = serde_json::from_str(&row).unwrap();
        let each = WHOLE.replacen("call.function | tojson", "call.function.arguments.x | string", 1);
        let each = each.replacen("{{ '<|im_end|>", "{% for c in m.tool_calls or [] %}{{ ' ' }}{{ c.function.arguments.x }}{{ ' ' + c.function.name }}{% endfor %}{{ '<|im_end|>", 2);
        load_row(&row, &each).map(|_| texts(&row, &each).1)
    };
    for (number, python) in [
        ("1e-05", "1e-05"),
        ("0.0001", "0.0001"),
        ("1e16", "1e+16"),
        ("123456789012345.5", "123456789012345.5"),
        ("2.0", "2.0"),
        ("-1.5e-7", "-1.5e-07"),
        ("18446744073709551615", "18446744073709551615"),
    ] {
        assert_eq!(written(number).unwrap(), format!("{python} {python} f<|im_end|>"), "{number}");
    }
    for number in ["123456789012345678901234567890", "1e25", "-18446744073709551616"] {
        assert_says(&refusal(written(number)), &["`messages[1]`", "tool_calls[0]", "64 bits", "as a text"]);
    }
    let printed =
        WHOLE.replacen("call.function | tojson", "call.function.name ~ (call.function.arguments | string)", 1);
    let row =
        calling(json!({"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": [1e-7]}}]}));
    assert_says(&refusal(load_row(&row, &printed)), &["line 1", "`tojson`"]);
}

/// Qwen3's own template, in short: it writes an empty thought into the answers behind the last question only.
#[test]
fn a_call_without_words_is_found_where_turns_are_written_by_what_follows() {
    let template = r"{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and (loop.last or m.reasoning_content) %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content or '' }}{% for call in m.tool_calls or [] %}{% if loop.first and m.content or not loop.first %}{{ '\n' }}{% endif %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    for content in [json!(""), Value::Null] {
        for turn in [
            json!({"role": "assistant", "content": content, "tool_calls": [{"name": "f", "arguments": {"x": "Oslo"}}]}),
            json!({"role": "assistant", "content": content, "tool_calls": [
                {"name": "f", "arguments": {"x": "Oslo"}}, {"name": "f", "arguments": {"x": "Rome"}}]}),
        ] {
            let learned = texts(&calling(turn.clone()), template).1;
            let calls: Vec<&str> =
                ["Oslo", "Rome"].into_iter().filter(|city| turn.to_string().contains(city)).collect();
            let calls: Vec<String> =
                calls.iter().map(|city| format!("{{\"name\": \"f\", \"arguments\": {{\"x\": \"{city}\"}}}}")).collect();
            let expected = format!("{}<|im_end|><think>\n\n</think>\n\nthree<|im_end|>", calls.join("\n"));
            assert_eq!(learned, expected, "{turn}");
        }
    }
}

#[test]
fn what_a_template_leaves_out_of_other_turns_is_told() {
    let deaf = WHOLE.replacen("{{ m.content or '' }}", "{{ '' if m.role == 'tool' else (m.content or '') }}", 1);
    let row = calling(json!({"role": "assistant", "content": "w", "weight": 0}));
    let row = json!({"messages": [row["messages"][0], row["messages"][1], {"role": "tool", "content": "the result"}, row["messages"][3]]});
    let (data, _) = load_row(&row, &deaf).unwrap();
    assert_says(&data.report.to_string(), &["warning: ", "in 1 row (line 1)", "leaves out what a tool turn says"]);
    // Calls of a turn that is not learned.
    let row = calling(json!({"role": "assistant", "content": "w", "train": false, "tool_calls": [{"name": "get"}]}));
    let (data, _) = load_row(&row, CHATML).unwrap();
    assert_says(&data.report.to_string(), &["leaves out tool calls of a turn that is not learned"]);
}

#[test]
fn a_developer_speaks_as_system_where_the_template_knows_no_developer() {
    let row = json!({"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "q"},
                                  {"role": "assistant", "content": "a"}]});
    assert!(texts(&row, CHATML).0.starts_with("<|im_start|>system\nBe brief.<|im_end|>"));
    let (data, _) = load_row(&row, CHATML).unwrap();
    assert_says(&data.report.to_string(), &["role is developer", "rendered as system"]);
    let knowing = format!("{{# developer #}}{CHATML}");
    assert!(texts(&row, &knowing).0.starts_with("<|im_start|>developer\nBe brief.<|im_end|>"));
}

#[test]
fn a_models_template_for_tools_is_used_where_a_row_has_tools() {
    let dir = model_dir(None);
    let mut config = tokenizer_config(None);
    config["chat_template"] = json!([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": WHOLE}]);
    write_json(dir.path(), "tokenizer_config.json", &config);
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let rows = format!("{}\n{}", json!({"messages": turns, "tools": [{"name": "lookup"}]}), json!({"messages": turns}));
    let data = load_one(rows, Some(&tokenizer)).unwrap();
    assert!(tokenizer.decode(&data.rows[0].input_ids, false).unwrap().contains("lookup"));
    std::fs::write(dir.path().join("chat_template.jinja"), CHATML).unwrap();
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    std::fs::write(dir.path().join("additional_chat_templates/tool_use.jinja"), WHOLE).unwrap();
    let tokenizer = ChatTokenizer::open(dir.path(), None).unwrap();
    let data =
        load_one(json!({"messages": turns, "tools": [{"name": "lookup"}]}).to_string(), Some(&tokenizer)).unwrap();
    assert!(tokenizer.decode(&data.rows[0].input_ids, false).unwrap().contains("lookup"));
}

#[test]
fn variables_of_a_row_reach_the_template() {
    let template = CHATML.replacen("{% for", "{{ '[' + (mood or 'none') + ']' }}{% for", 1);
    let row = |kwargs: Value| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "chat_template_kwargs": kwargs});
    assert!(texts(&row(json!({"mood": "good"})), &template).0.starts_with("[good]"));
    assert!(texts(&row(Value::Null), &template).0.starts_with("[none]"));
    assert_says(&refusal(load_row(&row(json!(3)), &template)), &["chat_template_kwargs", "an object"]);
    // A text of JSON, as tables hold them.
    assert!(texts(&row(json!("{\"mood\": \"good\"}")), &template).0.starts_with("[good]"));
    assert!(texts(&row(json!("")), &template).0.starts_with("[none]"));
    assert_says(&refusal(load_row(&row(json!("good")), &template)), &["the string \"good\"", "a JSON text"]);
}

/// OpenAI's older rows define tools as bare `functions`.
#[test]
fn functions_are_tools_of_that_type() {
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let function = json!({"name": "f", "description": "d", "parameters": {}});
    let tools = json!([{"type": "function", "function": function}]);
    let new = texts(&json!({"messages": turns, "tools": tools}), WHOLE);
    for functions in [json!([function]), json!(json!([function]).to_string()), function.clone()] {
        for none in [Value::Null, json!([]), json!("[]")] {
            let row = json!({"messages": turns, "functions": functions, "tools": none});
            assert_eq!(texts(&row, WHOLE), new, "{functions}");
        }
    }
    for none in [Value::Null, json!([]), json!(""), json!("[]")] {
        assert!(!texts(&json!({"messages": turns, "functions": none}), WHOLE).0.contains("system"), "{none}");
    }
    let both = json!({"messages": turns, "functions": [function], "tools": tools});
    assert_says(&refusal(load_row(&both, WHOLE)), &["both `tools` and `functions`"]);
    let wrong = json!({"messages": turns, "functions": [3]});
    assert_says(&refusal(load_row(&wrong, WHOLE)), &["`functions[0]`", "expected an object"]);
    // A template that writes none.
    let row = json!({"messages": turns, "functions": [function]});
    assert_says(&refusal(load_row(&row, CHATML)), &["does not write the row's `tools`"]);
}

/// The warnings about the only row.
#[track_caller]
fn warned(row: &Value, template: &str) -> Vec<String> {
    let (data, _) = load_row(row, template).unwrap_or_else(|error| panic!("{row}: {error}"));
    let mut lines = data.report.files[0].notes.lines("line");
    // These templates write no BOS, which gives a note too.
    lines.retain(|line| !line.contains("BOS token"));
    lines
}

/// Another turn, or the template itself, may hold the words of a turn that is left out.
#[test]
fn a_turn_that_is_left_out_is_told_although_its_words_stand_elsewhere() {
    let without = |role: &str| {
        WHOLE.replacen("{% for m in messages %}", &format!("{{% for m in messages if m.role != '{role}' %}}"), 1)
    };
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let row = |turns: &[Value]| json!({"messages": turns});
    let left_out =
        |role: &str| format!("warning: in 1 row (line 1) the chat template leaves out what a {role} turn says");
    for result in ["42", "4", "It is 42.", "assistant", "user\n6", " 42\n"] {
        let asked =
            [turn("user", "6*7?"), turn("assistant", "calc"), turn("tool", result), turn("assistant", "It is 42.")];
        assert_eq!(warned(&row(&asked), &without("tool")), [left_out("tool")], "{result}");
        assert_eq!(warned(&row(&asked), WHOLE), [""; 0], "{result}");
        // Several of one role give one note.
        let twice = [&asked[..], &asked[..]].concat();
        assert_eq!(warned(&row(&twice), &without("tool")), [left_out("tool")], "{result}");
    }
    let system = [turn("system", "w?"), turn("user", "w?"), turn("assistant", "a")];
    assert_eq!(warned(&row(&system), &without("system")), [left_out("system")]);
    assert_eq!(warned(&row(&system), WHOLE), [""; 0]);
    // The last turn of the user only.
    let last = r"{% for m in messages %}{% if m.role != 'user' or loop.index0 + 2 == messages | length %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let greeting = [turn("user", "Hi"), turn("user", "Hi, who?"), turn("assistant", "a")];
    assert_eq!(warned(&row(&greeting), WHOLE), [""; 0]);
    let earlier = json!({"role": "assistant", "content": "hm", "train": false});
    let greeting = [turn("user", "Hi"), earlier, turn("user", "Hi, who?"), turn("assistant", "a")];
    assert_eq!(warned(&row(&greeting), last), [left_out("user")]);
    // An empty turn says nothing that could be left out.
    let silent = [turn("system", " "), turn("user", "q"), turn("assistant", "a")];
    assert_eq!(warned(&row(&silent), &without("system")), [""; 0]);
}

#[test]
fn a_turn_that_is_written_elsewhere_or_otherwise_is_not_told() {
    let row = json!({"messages": [{"role": "system", "content": " s\n"}, {"role": "user", "content": "  s "},
                                  {"role": "assistant", "content": "a"}, {"role": "user", "content": "a"},
                                  {"role": "assistant", "content": "b"}]});
    // Trimmed, in the first turn of the user, in the last one.
    let trimmed = WHOLE.replacen("m.content or ''", "(m.content or '') | trim", 1);
    let merged = r"{% for m in messages %}{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' }}{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ (messages[0].content | trim) + '\n\n' }}{% endif %}{{ (m.content | trim) + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let moved = merged.replacen("loop.index0 == 1", "loop.index0 == 3", 1);
    // Refuses a turn of the user that it does not know.
    let strict = format!(
        "{{% for m in messages if m.role == 'user' and (m.content | trim) not in ['s', 'a'] %}}{{{{ raise_exception('no') }}}}{{% endfor %}}{trimmed}"
    );
    for template in [trimmed.as_str(), merged, &moved, &strict] {
        assert_eq!(warned(&row, template), [""; 0], "{template}");
    }
}
