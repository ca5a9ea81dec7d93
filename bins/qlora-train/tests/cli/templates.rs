//! Chat templates of strangers: whatever work and memory they ask for, the command ends soon, with a reason.

use std::time::{Duration, Instant};

use crate::sandbox::Sandbox;

/// Two lists that hold others 2⁶⁰ times over, and take no room.
const NESTED: &str = "{% set n = namespace(s=['x'], t=['x']) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}";

/// A conversation alone: several would each come to the limit, at the same time.
fn write_one(sandbox: &Sandbox) {
    sandbox.write("one.jsonl", sandbox.read("chat.jsonl").lines().next().unwrap());
}

/// The template is refused by a limit that is counted, on every machine alike.
#[track_caller]
fn ends(template: &str, words: &[&str]) {
    let sandbox = Sandbox::chat();
    sandbox.write("stranger.jinja", template);
    write_one(&sandbox);
    let (before, started) = (sandbox.files(), Instant::now());
    let done = sandbox.run("preview --model model --data one.jsonl --chat-template stranger.jinja");
    assert!(!done.stderr.contains("the clock"), "{}: {}", &template[template.len().saturating_sub(80)..], done.stderr);
    done.ended(2, words);
    assert!(sandbox.files() == before, "something was written");
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
}

const TOO_MUCH: &str = "the chat template takes too much";
const VALUES: &str = "memory for more than 10 million values";
const FUEL: &str = "more than 5 million instructions";
const PIECE: &str = "more than 48 MiB for a single text or list";
const ASKED: &str = "more than 2048 MiB of texts and lists, one after another";

#[test]
fn comparisons_of_nested_lists_end() {
    ends(&format!("{NESTED}{{{{ n.s == n.t }}}}"), &[VALUES]);
}

#[test]
fn sorting_nested_lists_ends() {
    ends(&format!("{NESTED}{{{{ [n.s, n.t] | sort | length }}}}"), &[VALUES]);
}

#[test]
fn searching_nested_lists_ends() {
    ends(&format!("{NESTED}{{{{ n.s in [n.t] }}}}"), &[VALUES]);
}

#[test]
fn nested_lists_as_keys_end() {
    ends(&format!("{NESTED}{{{{ {{n.s: 1}} | length }}}}"), &[VALUES]);
}

#[test]
fn texts_of_nested_lists_end() {
    ends(&format!("{NESTED}{{{{ (n.s ~ '') | length }}}}"), &[TOO_MUCH]);
    ends(&format!("{NESTED}{{{{ n.s | string | length }}}}"), &[FUEL]);
    ends(&format!("{NESTED}{{{{ n.s | join(',') | length }}}}"), &[TOO_MUCH]);
    ends(&format!("{NESTED}{{{{ ','.join(n.s) | length }}}}"), &[TOO_MUCH]);
    ends(&format!("{NESTED}{{{{ n.s | tojson | length }}}}"), &[FUEL]);
}

#[test]
fn lists_that_double_end() {
    let double = |what: &str| {
        format!("{{% set n = namespace(s=[1, 2]) %}}{{% for i in range(60) %}}{{% set n.s = {what} %}}{{% endfor %}}")
    };
    for what in ["n.s + n.s", "n.s | chain(n.s)"] {
        ends(&format!("{}{{{{ n.s | list | length }}}}", double(what)), &[PIECE]);
    }
    for what in ["(n.s + n.s) | list", "n.s | map('string') | list + n.s"] {
        ends(&double(what), &[]);
    }
}

#[test]
fn formats_of_many_fields_end() {
    ends("{{ (('{0:>9999}' * 1000) * 1000).format('a') | length }}", &[PIECE]);
}

/// Each of these does its work again and again, and little of it is instructions.
#[test]
fn work_on_long_texts_and_lists_is_counted() {
    let often = |before: &str, what: &str| {
        format!(
            "{{% set a = 'x' * 900000 %}}{{% set b = a ~ 'y' %}}{before}{{% for i in range(99999) %}}{what}{{% endfor %}}"
        )
    };
    for (before, what, words) in [
        ("", "{% if 'y' in a %}{% endif %}", FUEL),
        ("", "{% set c = a.find('y') %}", FUEL),
        ("", "{% set c = a | replace('y', 'z') %}", FUEL),
        ("", "{% set c = a.split('y') %}", "the chat template "),
        ("", "{% set c = a[1:] %}", FUEL),
        ("", "{% set c = [a] | tojson %}", FUEL),
        ("", "{% set c = 'x'.startswith(b) %}", FUEL),
        ("{% set l = ([1] * 900000) | list %}", "{% set c = l.count(2) %}", FUEL),
        ("{% set l = (['b'] * 900000) | list %}", "{% set c = 'a'.startswith(l) %}", FUEL),
        ("{% set l = [1] * 900000 %}", "{% if 2 in l %}{% endif %}", FUEL),
        ("{% set l = [1] * 900000 %}", "{% set c = l | unique | list %}", FUEL),
        ("{% set n = namespace(l=[]) %}", "{% set n.l = n.l + [i] %}{% set c = n.l | list %}", FUEL),
        ("", "{% set c = [a, b] | sort %}", ASKED),
    ] {
        ends(&often(before, what), &[words]);
    }
}

/// Texts of values that hold themselves have no end.
#[test]
fn namespaces_that_hold_themselves_end() {
    let cycle = "{% set n = namespace(s=1) %}{% set n.s = [n] %}";
    for what in ["{{ n }}", "{{ n.s ~ '' }}", "{{ '{}'.format(n) }}", "{{ n.s | join(',') }}", "{{ [n, n.s] | sort }}"]
    {
        ends(&format!("{cycle}{what}"), &[TOO_MUCH]);
    }
    ends(&format!("{cycle}{{{{ n | tojson }}}}"), &["nested too deeply"]);
}

/// Each character of a text is looked for among others.
#[test]
fn stripping_many_characters_is_counted() {
    for what in ["a.strip(b)", "a.lstrip(b)", "a.rstrip(b)", "a | trim(b)"] {
        ends(
            &format!("{{% set a = 'x' * 900000 %}}{{% set b = 'y' * 900000 ~ 'x' %}}{{{{ {what} | length }}}}"),
            &[FUEL],
        );
    }
}

/// Stack is taken by the length of an expression, and by the depth of a value.
#[test]
fn deep_expressions_and_values_end() {
    let sandbox = Sandbox::chat();
    write_one(&sandbox);
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
        let done = sandbox.run("preview --model model --data one.jsonl --chat-template stranger.jinja");
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

/// Probes of such a template do not tell where answers end, which is no reason to end in a panic.
#[test]
fn a_template_may_write_the_next_question_first() {
    let sandbox = Sandbox::chat();
    let template = "{% if messages|length > 2 %}{{ messages[2].content }}{% endif %}{{ messages[0].content }}<u>\
                    {% if messages|length > 1 %}{{ messages[1].content }}{% endif %}<e>";
    sandbox.write("stranger.jinja", template);
    let done = sandbox.run("preview --model model --data chat.jsonl --chat-template stranger.jinja");
    assert!(matches!(done.status, Some(0 | 2)) && !done.stderr.contains("panicked"), "{done:#?}");
}
