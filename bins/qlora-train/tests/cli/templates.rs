//! Chat templates of strangers: whatever work and memory they ask for, the command ends soon, with a reason.

use std::time::{Duration, Instant};

use crate::sandbox::Sandbox;

/// Two lists that hold others 2⁶⁰ times over, and take no room.
const NESTED: &str = "{% set n = namespace(s=['x'], t=['x']) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}";

#[track_caller]
fn ends(template: &str, words: &[&str]) {
    let sandbox = Sandbox::chat();
    sandbox.write("stranger.jinja", template);
    let started = Instant::now();
    sandbox.refused("preview --model model --data chat.jsonl --chat-template stranger.jinja", words);
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
}

#[test]
fn comparisons_of_nested_lists_end() {
    ends(&format!("{NESTED}{{{{ n.s == n.t }}}}"), &["the chat template takes too much work"]);
}

#[test]
fn sorting_nested_lists_ends() {
    ends(&format!("{NESTED}{{{{ [n.s, n.t] | sort | length }}}}"), &["the chat template takes too much work"]);
}

#[test]
fn searching_nested_lists_ends() {
    ends(&format!("{NESTED}{{{{ n.s in [n.t] }}}}"), &["the chat template takes too much work"]);
}

#[test]
fn nested_lists_as_keys_end() {
    ends(&format!("{NESTED}{{{{ {{n.s: 1}} | length }}}}"), &["the chat template takes too much"]);
}

#[test]
fn texts_of_nested_lists_end() {
    ends(&format!("{NESTED}{{{{ (n.s ~ '') | length }}}}"), &["the chat template takes too much"]);
    ends(&format!("{NESTED}{{{{ n.s | string | length }}}}"), &["the chat template does not end"]);
}

#[test]
fn lists_that_double_end() {
    let double = |what: &str| {
        format!("{{% set n = namespace(s=[1, 2]) %}}{{% for i in range(60) %}}{{% set n.s = {what} %}}{{% endfor %}}")
    };
    for what in ["n.s + n.s", "n.s | chain(n.s)"] {
        ends(&format!("{}{{{{ n.s | list | length }}}}", double(what)), &["the chat template"]);
    }
}

#[test]
fn formats_of_many_fields_end() {
    ends("{{ (('{0:>9999}' * 1000) * 1000).format('a') | length }}", &["the chat template"]);
}

/// Stack is taken by the length of an expression, and by the depth of a value.
#[test]
fn deep_expressions_and_values_end() {
    let sandbox = Sandbox::chat();
    for template in [
        format!("{{{{ {}1 }}}}", "-".repeat(200_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{{{{ a{} }}}}", "|e".repeat(100_000)),
        format!("{{% if 1 %}}{}", "{% if 1 %}".repeat(20_000)),
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% for j in range(6) %}{% set n.s = [n.s] %}{% endfor %}{% endfor %}".to_owned(),
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% for j in range(4) %}{% set n.s = [n.s] %}{% endfor %}{% endfor %}{{ n.s == [n.s] }}".to_owned(),
    ] {
        sandbox.write("stranger.jinja", &template);
        let done = sandbox.run("preview --model model --data chat.jsonl --chat-template stranger.jinja");
        assert!(matches!(done.status, Some(0 | 2)), "{}: {done:?}", &template[..60]);
    }
}

#[test]
fn a_template_of_a_mebibyte_is_refused() {
    let sandbox = Sandbox::chat();
    sandbox.write("stranger.jinja", &"x".repeat(1 << 20));
    let line = "preview --model model --data chat.jsonl --chat-template stranger.jinja";
    sandbox.refused(line, &["stranger.jinja", "more than the 256 KiB that a chat template may have"]);
    std::fs::copy(sandbox.path("stranger.jinja"), sandbox.path("model/chat_template.jinja")).unwrap();
    sandbox.refused("preview --model model --data chat.jsonl", &["chat_template.jinja", "more than the 256 KiB"]);
    std::fs::remove_file(sandbox.path("model/chat_template.jinja")).unwrap();
    let mut config = sandbox.json("model/tokenizer_config.json");
    config["chat_template"] = "x".repeat(1 << 20).into();
    sandbox.write("model/tokenizer_config.json", &config.to_string());
    sandbox.refused("preview --model model --data chat.jsonl", &["tokenizer_config.json", "more than the 256 KiB"]);
}
