use super::*;

/// The text without the first line, with each `from` replaced by its `to` as bug 1, 2, ...
fn switched(text: &str, bugs: &[(&str, &str)]) -> String {
    let bug = |(index, (from, to)): (usize, &(&str, &str))| {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        Bug { number: index + 1, what: "b", text: text.replacen(from, to, 1) }
    };
    let bugs: Vec<_> = bugs.iter().enumerate().map(bug).collect();
    let out = with_switches(text, &bugs.iter().collect::<Vec<_>>());
    let squeezed = out.strip_prefix(OPENING).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    squeezed.replace(", \"b\")", ")")
}

#[test]
fn an_expression_is_one_of_two() {
    for (text, from, to, expected) in [
        ("int a = b + 1;", "+ 1", "+ 2", "int a =(seeded(1) ? ( b + 2) : ( b + 1));"),
        ("a += b & c;", " & c", "", "a +=(seeded(1) ? ( b) : ( b & c));"),
        ("return a <= b;", "<=", "<", "return (seeded(1) ? (a < b) : (a <= b));"),
        ("f(a, g(b), c);", "b", "-b", "f(a, g((seeded(1) ? (-b) : (b))), c);"),
        (
            "x[a] = (b > -(c - 1) * 4);",
            "> -(c - 1)",
            ">= -(c - 2)",
            "x[a] = ((seeded(1) ? (b >= -(c - 2) * 4) : (b > -(c - 1) * 4)));",
        ),
        ("for (; i < n; ++i) {}", "i < n", "i + 1 < n", "for (;(seeded(1) ? ( i + 1 < n) : ( i < n)); ++i) {}"),
        ("{ wait<2>(); }", "2", "1", "{(seeded(1) ? ( wait<1>()) : ( wait<2>())); }"),
    ] {
        assert_eq!(switched(text, &[(from, to)]), expected);
    }
}

#[test]
fn a_part_of_a_list_is_changed_with_what_holds_it() {
    let text = "y = f(a, b, c);";
    assert_eq!(switched(text, &[("b, c", "0, 1")]), "y =(seeded(1) ? ( f(a, 0, 1)) : ( f(a, b, c)));");
}

#[test]
fn statements_are_one_branch_of_an_if() {
    for (text, from, to, expected) in [
        ("a(); // here\nb();", "a(); // here", "", "{ if (seeded(1)) { } else { a(); } } b();"),
        ("{ a = 1; }", "a = 1;", ";", "{ { if (seeded(1)) { ; } else { a = 1; } } }"),
        ("a(); if (b) c();", "if (b) c", "c", "a(); { if (seeded(1)) { c(); } else { if (b) c(); } }"),
        (
            "if (a) b(); else c();",
            "b();",
            "{ b(); d(); }",
            "{ if (seeded(1)) { if (a) { b(); d(); } else c(); } else { if (a) b(); else c(); } }",
        ),
        (
            "a(); for (i = 0; i < n; ++i) b();",
            "0; i < n; ++i",
            "n; i-- > 0;",
            "a(); { if (seeded(1)) { for (i = n; i-- > 0;) b(); } else { for (i = 0; i < n; ++i) b(); } }",
        ),
    ] {
        assert_eq!(switched(text, &[(from, to)]), expected);
    }
}

#[test]
fn bugs_that_meet_share_a_chain() {
    for (text, bugs, expected) in [
        ("a = b + c;", [("b", "0"), ("c", "1")], "a =(seeded(1) ? ( 0 + c) : seeded(2) ? ( b + 1) : ( b + c));"),
        (
            "{ a(b); c(); }",
            [("c();", ""), ("a(b);", "")],
            "{ { if (seeded(1)) { a(b); } else if (seeded(2)) { c(); } else { a(b); c(); } } }",
        ),
        ("a = b; c = d;", [("d", "0"), ("b", "1")], "a =(seeded(2) ? ( 1) : ( b)); c =(seeded(1) ? ( 0) : ( d));"),
    ] {
        assert_eq!(switched(text, &bugs), expected);
    }
}

#[test]
fn comments_are_left_out_and_lines_stay() {
    assert_eq!(without_comments("a /* b; */ c; // d\n// e\nf\n"), "a  c;\n\nf\n");
    assert!(HEADER.1.contains(&format!("getenv(\"{VARIABLE}\")")));
}
