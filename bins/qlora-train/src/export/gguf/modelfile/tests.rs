use super::*;

/// Each turn by its role, with a system message where there is none.
fn chatml(turns: &[(&str, &str)], open: bool) -> Option<String> {
    let system = if turns[0].0 == "system" { "" } else { "<s>system\nBe {{ kind }}<e>\n" };
    let turn = |(role, content): &(&str, &str)| format!("<s>{role}\n{content}<e>\n");
    let opening = if open { "<s>assistant\n" } else { "" };
    Some(format!("<bos>{system}{}{opening}", turns.iter().map(turn).collect::<String>()))
}

#[test]
fn a_template_of_turns_is_written_in_go() {
    let turns = Turns::of(&chatml, Some("<bos>")).unwrap();
    assert_eq!(turns.default_system, "<s>system\nBe {{ kind }}<e>\n");
    assert_eq!(
        turns.to_go(true),
        "{{ if not .System }}<s>system\nBe {{ \"{{\" }} kind }}<e>\n{{ end }}{{ range .Messages }}\
         {{ if eq .Role \"user\" }}<s>user\n{{ .Content }}<e>\n{{ else if eq .Role \"assistant\" }}<s>assistant\n\
         {{ .Content }}<e>\n{{ else if eq .Role \"system\" }}<s>system\n{{ .Content }}<e>\n{{ end }}{{ end }}\
         <s>assistant\n"
    );
    assert!(turns.to_go(false).starts_with("<bos>{{ if not .System }}"));
}

#[test]
fn a_template_that_looks_around_is_not() {
    let last_only = |turns: &[(&str, &str)], open: bool| {
        let end = turns.len() - 1;
        let turn = |(at, (role, content)): (usize, &(&str, &str))| {
            let thought = if at == end && *role == "assistant" { "<think></think>" } else { "" };
            format!("<s>{role}\n{thought}{content}<e>\n")
        };
        let opening = if open { "<s>assistant\n" } else { "" };
        Some(format!("{}{opening}", turns.iter().enumerate().map(turn).collect::<String>()))
    };
    assert_eq!(Turns::of(&last_only, None), None);
    let no_system = |turns: &[(&str, &str)], open: bool| chatml(turns, open).filter(|_| turns[0].0 != "system");
    assert_eq!(Turns::of(&no_system, None).unwrap().system, None);
}
