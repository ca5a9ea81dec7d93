//! The Jinja environment of chat templates.

use jiff::civil::date;
use jiff::tz::TimeZone;
use minijinja::Value;
use qlora_train::data::ChatTemplate;
use trainer_lab::fixture::{CHATML, LLAMA3};

fn compile(source: &str) -> Result<ChatTemplate, String> {
    let now = date(2024, 7, 6).at(8, 5, 0, 0).to_zoned(TimeZone::UTC).unwrap();
    ChatTemplate::compile(source, vec![("bos_token".into(), "<s>".into())], now)
}

fn turn(content: Value) -> Value {
    Value::from_pairs([("role", Value::from("user")), ("content", content)])
}

fn render(source: &str, content: impl Into<Value>) -> Result<String, String> {
    compile(source)?.render(&[turn(content.into())], false)
}

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    let source = "  {% if true %}\nyes\n  {% endif %}\n  {{ 1 }}\n\n";
    assert_eq!(render(source, "").unwrap(), "yes\n  1\n");
}

#[test]
fn special_tokens_and_fixed_variables_are_known() {
    let source = "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ custom is defined }}";
    assert_eq!(render(source, "").unwrap(), "<s>TrueTrueFalseFalse");
}

#[test]
fn loops_break_and_continue() {
    let source = "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}";
    assert_eq!(render(source, "").unwrap(), "023");
}

#[test]
fn python_string_methods_work() {
    let source = "{% set c = messages[0].content %}{{ c.strip().upper() }}|{{ c.split(',')[-1] }}|{{ c.startswith(' a') }}|{{ c.replace('a', 'x') }}|{{ messages[0].items() | length }}|{{ messages[0].get('x', 'd') }}";
    assert_eq!(render(source, " a,b ").unwrap(), "A,B|b |True| x,b |2|d");
}

#[test]
fn namespaces_slices_and_tests_work() {
    let source = "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ messages[1:] }}{{ messages[0].content is string }}{{ messages[0] is mapping }}{{ messages[0]['content'] | trim }}";
    assert_eq!(render(source, " x ").unwrap(), "1[]TrueTruex");
}

#[test]
fn none_is_not_iterable_but_strings_lists_and_maps_are() {
    let source = "{{ tools is iterable }}{{ messages is iterable }}{{ messages[0] is iterable }}{{ messages[0].content is iterable }}{{ 1 is iterable }}";
    assert_eq!(render(source, "").unwrap(), "FalseTrueTrueTrueFalse");
}

#[test]
fn tojson_writes_what_python_writes() {
    let value = Value::from_pairs([
        ("text", Value::from("<a> & 'é' \"\n\u{1}")),
        ("list", Value::from(vec![Value::from(1), Value::from(2.0), Value::from(true), Value::from(())])),
        ("empty", Value::from_pairs(Vec::<(String, String)>::new())),
        ("tiny", Value::from(1.5e-7)),
        ("huge", Value::from(1e20)),
    ]);
    assert_eq!(
        render("{{ messages[0].content | tojson }}", value.clone()).unwrap(),
        r#"{"text": "<a> & 'é' \"\n\u0001", "list": [1, 2.0, true, null], "empty": {}, "tiny": 1.5e-07, "huge": 1e+20}"#
    );
    assert_eq!(
        render("{{ messages[0].content.list | tojson(indent=2) }}", value.clone()).unwrap(),
        "[\n  1,\n  2.0,\n  true,\n  null\n]"
    );
    assert_eq!(
        render("{{ messages[0].content | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}", value)
            .unwrap(),
        r#"{"empty":{},"huge":1e+20,"list":[1,2.0,true,null],"text":"<a> & '\u00e9' \"\n\u0001","tiny":1.5e-07}"#
    );
}

#[test]
fn the_date_is_the_one_given() {
    let template = compile("{{ strftime_now('%d %b %Y') }}").unwrap();
    assert!(template.uses_date());
    assert_eq!(template.render(&[], false).unwrap(), "06 Jul 2024");
    assert!(!compile("{{ 1 }}").unwrap().uses_date());
    assert!(compile("{{ strftime_now('%!') }}").unwrap().render(&[], false).unwrap_err().contains("strftime_now"));
}

/// Values of Jinja 3.1.
#[test]
fn indent_is_that_of_jinja() {
    for (filter, expected) in [
        ("'{\\n' | indent(4, first=true)", "    {\n"),
        ("'a\\n\\nb' | indent", "a\n\n    b"),
        ("'a\\n\\nb\\n' | indent(2, true, true)", "  a\n  \n  b\n  "),
        ("'a\\nb' | indent(width='> ', first=true)", "> a\n> b"),
        ("'' | indent(2, true)", "  "),
        ("'' | indent(2)", ""),
        ("'a\\r\\nb' | indent(1)", "a\n b"),
    ] {
        assert_eq!(render(&format!("{{{{ {filter} }}}}"), "").unwrap(), expected, "{filter}");
    }
}

#[test]
fn generation_tags_change_nothing() {
    let with = "{% for m in messages %}\n{%- generation -%}\n {{ m.content }}\n{% endgeneration %}\n!{%generation%}{% set x = 1 %}{%- endgeneration %}{{ x }}\n{% endfor %}";
    // A tag on a line of its own vanishes with its line; `-` strips white space; names set inside stay inside.
    assert_eq!(render(with, "a").unwrap(), "a\n!\n");
}

#[test]
fn a_raised_exception_keeps_its_message() {
    let error = render("{{ raise_exception('only \"user\" here') }}", "").unwrap_err();
    assert_eq!(error, "the chat template refuses the conversation: only \"user\" here");
    let nested =
        "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{% for m in messages %}{{ f() }}{% endfor %}";
    assert_eq!(render(nested, "").unwrap_err(), "the chat template refuses the conversation: deep");
}

#[test]
fn mistakes_in_a_template_are_told_with_their_line() {
    let syntax = compile("a\n{% if %}").unwrap_err();
    assert!(syntax.contains("does not compile") && syntax.contains(":2"), "{syntax}");
    let runtime = render("a\n{{ messages[0].content.missing.deeper }}", "").unwrap_err();
    assert!(runtime.contains("the chat template fails") && runtime.contains(":2"), "{runtime}");
    let unclosed = compile("a\n{%} b %} {% if true %}").unwrap_err();
    assert!(unclosed.contains("does not compile") && unclosed.contains(":2"), "{unclosed}");
    let method = render("{{ messages[0].content.nonsense() }}", "").unwrap_err();
    assert!(method.contains("nonsense"), "{method}");
}

#[test]
fn filters_that_jinja_answers_otherwise_are_refused() {
    for (filter, words) in [("attr('role')", "write value['key']"), ("pprint", "use `tojson`"), ("escape", "HTML")] {
        let error = render(&format!("{{{{ messages[0]|{filter} }}}}"), "a").unwrap_err();
        let name = filter.split('(').next().unwrap();
        assert!(error.contains(&format!("the filter `{name}`")) && error.contains(words), "{error}");
    }
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let error = render(nested, "").unwrap_err();
    assert!(error.contains("does not end"), "{error}");
    let growing = "{% set ns = namespace(s='x') %}{% for i in range(9999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    assert!(render(growing, "").is_err());
}

#[test]
fn endless_recursion_is_stopped_on_a_worker_thread_too() {
    let source = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    let template = compile(source).unwrap();
    let error = std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || template.render(&[], false).unwrap_err())
        .unwrap()
        .join()
        .unwrap();
    assert!(error.contains("recursion"), "{error}");
}

/// A thousand turns in the styles of well-known models take a small part of what is allowed, and two turns less.
#[test]
fn a_long_conversation_takes_a_part_of_what_is_allowed() {
    let turns = |count: usize| -> Vec<Value> {
        let content = |at: usize| Value::from(format!("turn {at} {}", "with some words ".repeat(20)));
        let role = |at: usize| Value::from(["user", "assistant"][at % 2]);
        (0..count).map(|at| Value::from_pairs([("role", role(at)), ("content", content(at))])).collect()
    };
    for source in [CHATML, LLAMA3] {
        let template = compile(source).unwrap();
        let share = |count| template.share_of_limits(&turns(count), false).unwrap();
        let (short, long) = (share(2), share(1000));
        assert!(short < 0.01 && short < long && long < 0.25, "{short} and {long}: {source}");
    }
    let refused = compile("{{ raise_exception('no') }}").unwrap().share_of_limits(&[], false);
    assert!(refused.unwrap_err().contains("refuses the conversation: no"));
}

/// Each of these would take more memory than any machine has, or more time than anybody waits.
#[test]
fn a_template_that_asks_for_huge_memory_is_stopped() {
    let doubling = |what: &str, then: &str| {
        let set = "{% set ns = namespace(l=[1], s='x') %}{% for i in range(60) %}{% set ns.";
        format!("{set}{what} %}}{{% endfor %}}{{{{ {then} }}}}")
    };
    for source in [
        "{{ 'x' * 10000000000 }}".to_owned(),
        "{{ [1] * 10000000000 }}".to_owned(),
        "{{ range(10000000000) | list | length }}".to_owned(),
        "{{ '%10000000000s' | format('x') }}".to_owned(),
        "{{ '{:>10000000000}'.format('x') }}".to_owned(),
        "{{ '{:.10000000000f}'.format(1.5) }}".to_owned(),
        "{{ 'x\ny' | indent(10000000000) }}".to_owned(),
        "{{ [1] | batch(10000000000, 'x') | list | length }}".to_owned(),
        "{{ [1] | slice(10000000000, 'x') | list | length }}".to_owned(),
        "{{ 10 ** 10000000000 }}".to_owned(),
        doubling("s = ns.s.replace('x', 'xx')", "ns.s"),
        doubling("s = [ns.s, ns.s] | join", "ns.s"),
        doubling("s = '%s%s' | format(ns.s, ns.s)", "ns.s"),
        doubling("l = [ns.l, ns.l]", "ns.l"),
        doubling("l = [ns.l, ns.l]", "ns.l | tojson"),
    ] {
        let error = render(&source, "").unwrap_err();
        assert!(error.starts_with("the chat template"), "{source}: {error}");
    }
    assert_eq!(render("{{ '{:>5}|{:.2f}'.format('x', 1.5) }}", "").unwrap(), "    x|1.50");
    // A width among the arguments would need a limit too.
    assert!(render("{{ '{:>{}}'.format('x', 3) }}", "").unwrap_err().contains("invalid conversion type"));
    assert_eq!(render("{{ [1, [2]] }}{{ {'a': none} }}", "").unwrap(), "[1, [2]]{'a': None}");
}

#[test]
fn a_template_reads_no_files_and_no_other_templates() {
    for source in
        ["{% include 'chat_template' %}", "{% include '/etc/hostname' %}", "{% import 'x' as y %}", "{% extends 'x' %}"]
    {
        let error = render(source, "").unwrap_err();
        assert!(error.starts_with("the chat template"), "{source}: {error}");
    }
}
