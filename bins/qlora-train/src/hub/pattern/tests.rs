use super::*;

#[test]
fn patterns_mean_what_they_mean_to_glob() {
    let options = glob::MatchOptions { require_literal_separator: true, ..glob::MatchOptions::new() };
    let names = ["a", "b", "ab", "a/b", "a/a/b", "a/b/c", "b/a", "a/x.jsonl", "x.jsonl", "a/b/x.jsonl", ".a/b"];
    let patterns = "a * ? ** */* a/* a/** **/b **/* a/**/b a/**/**/b **/** **/a/** */ /a a//b a* *b";
    let endings = "[ab] [!a]/* ./a *.jsonl **/*.jsonl a/?/* *a*/**/x.* */*/*.jsonl a/**/*";
    for pattern in patterns.split(' ').chain(endings.split(' ')).chain([""]) {
        let whole = Pattern::new(pattern).unwrap();
        let parts: Vec<Part> = pattern.split('/').map(|part| Part::new(part).unwrap()).collect();
        for name in names {
            assert_eq!(fits(&parts, name), whole.matches_with(name, options), "{pattern:?} and {name:?}");
        }
    }
}

#[test]
fn a_pattern_of_many_stars_comes_to_an_end() {
    let (folder, deep) = ("a".repeat(200), "a/".repeat(100));
    let names = [format!("{deep}t.jsonl"), format!("{folder}/t.jsonl"), format!("{folder}b/t.jsonl")];
    assert!(names.is_sorted());
    let matching = |pattern: &str| matching(pattern, &names, &mut Budget::default());
    assert_eq!(matching("*a*a*a*a*a*a*a*a*a*b/t.jsonl").unwrap(), names[2..]);
    assert_eq!(matching(&format!("{}b/t.jsonl", "**/*/".repeat(40))).unwrap(), [""; 0]);
    assert!(matching("a[b/c]d").unwrap_err().contains("no pattern"));
}

#[test]
fn a_pattern_is_compared_with_names_that_begin_like_it() {
    let mut names: Vec<String> = ["a", "a/b", "a/b/c", "a0", "ab/x", "b", "b/a/x", "é/x"].map(String::from).into();
    names.sort();
    for pattern in ["a", "a/", "./a", "a/*", "a*", "a/**", "**/x", "é", "b/?/x", "[ab]/*", "", "c", "a//"] {
        let literal = pattern.trim_start_matches("./");
        let parts: Vec<Part> = literal.split('/').map(|part| Part::new(part).unwrap()).collect();
        let folder = format!("{}/", literal.trim_end_matches('/'));
        let meant = |name: &&String| fits(&parts, name) || name.starts_with(&folder);
        let expected: Vec<String> = names.iter().filter(meant).cloned().collect();
        assert_eq!(matching(pattern, &names, &mut Budget::default()).unwrap(), expected, "{pattern:?}");
    }
}

#[test]
fn work_and_files_are_counted_over_all_patterns() {
    let names: Vec<String> = (0..1000).map(|at| format!("data/{at:03}.jsonl")).collect();
    let mut budget = Budget { meant: 1500, ..Budget::default() };
    let error = (0..2).find_map(|_| matching("data/*", &names, &mut budget).err()).unwrap();
    assert!(error.contains("more than 1000000 files"), "{error}");
    let mut budget = Budget { work: 1 << 20, ..Budget::default() };
    let wild = format!("*{}", "?".repeat(1000));
    let error = (0..3).find_map(|_| matching(&wild, &names, &mut budget).err()).unwrap();
    assert!(error.contains("more patterns than can be compared"), "{error}");
    // A pattern that names its folder costs nothing elsewhere.
    let mut budget = Budget { work: 1 << 20, ..Budget::default() };
    assert!((0..2000).all(|_| matching(&format!("other/{wild}"), &names, &mut budget).is_ok()));
}
