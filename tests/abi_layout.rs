//! The C header against the committed table of its layout (`tests/abi/layout.txt`): a change that breaks a program
//! compiled against an earlier header turns this red, an added field or function asks for its line in the table.

use std::collections::BTreeMap;

const HEADER: &str = include_str!("../cuda/include/qlora_kernels.h");
const TABLE: &str = include_str!("abi/layout.txt");

/// A header's or a table's interface.
#[derive(Clone, Default)]
struct Interface {
    version: u32,
    structs: BTreeMap<String, Struct>,
    functions: Vec<String>,
}

#[derive(Clone, Default)]
struct Struct {
    size: usize,
    /// Offset, type and name of every field, in order.
    fields: Vec<(usize, String, String)>,
}

/// The text without comments, every run of white space one space.
fn squeezed(header: &str) -> String {
    let mut text = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        text.push_str(before);
        rest = after.split_once("*/").expect("a comment that ends").1;
    }
    text.push_str(rest);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The part of `text` between the first `open` and the next `close`.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Option<&'a str> {
    text.split_once(open)?.1.split_once(close).map(|(inside, _)| inside)
}

fn of_header(header: &str) -> Interface {
    let text = squeezed(header);
    let version = between(&text, "#define QK_ABI_VERSION ", "u").expect("a version").parse().expect("a number");
    let mut interface = Interface { version, ..Interface::default() };
    for declared in text.split("typedef struct ").skip(1) {
        let Some((name, body)) = declared.split_once(" { ").filter(|(name, _)| !name.contains(' ')) else { continue };
        let body = body.split_once('}').expect("a struct that ends").0;
        let size = between(&text, &format!("QK_SIZE({name}, "), ")").unwrap_or_else(|| panic!("no QK_SIZE of {name}"));
        let fields = body.split(';').map(str::trim).filter(|field| !field.is_empty()).map(|field| {
            let end = field.rfind(|c: char| c != '_' && !c.is_ascii_alphanumeric()).expect("a type and a name");
            let (of_type, field) = (field[..=end].trim(), &field[end + 1..]);
            let at = between(&text, &format!("QK_AT({name}, {field}, "), ")");
            let at = at.unwrap_or_else(|| panic!("no QK_AT of {name}.{field}"));
            (at.parse().expect("an offset"), of_type.to_owned(), field.to_owned())
        });
        let declared = Struct { size: size.parse().expect("a size"), fields: fields.collect() };
        interface.structs.insert(name.to_owned(), declared);
    }
    for statement in text.split(';') {
        let results = ["int qk_", "uint32_t qk_", "const char *qk_"];
        let start = results.iter().filter_map(|result| statement.find(&format!(" {result}"))).min();
        if let Some(start) = start.filter(|_| statement.ends_with(')') && !statement.contains("QK_AT(")) {
            interface.functions.push(statement[start..].trim().to_owned());
        }
    }
    interface
}

fn of_table(table: &str) -> Interface {
    let mut interface = Interface::default();
    let mut name = String::new();
    for line in table.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "version" => interface.version = words[1].parse().expect("a version"),
            "function" => interface.functions.push(words[1..].join(" ")),
            "struct" => {
                name = words[1].to_owned();
                let size = words[2].parse().expect("a size");
                interface.structs.insert(name.clone(), Struct { size, fields: Vec::new() });
            }
            offset => {
                let (of_type, field) = (words[1..words.len() - 1].join(" "), words[words.len() - 1].to_owned());
                let fields = &mut interface.structs.get_mut(&name).expect("a struct above its fields").fields;
                fields.push((offset.parse().expect("an offset"), of_type, field));
            }
        }
    }
    interface
}

/// Every difference: first what breaks callers, then what the table lacks.
fn differences(table: &Interface, header: &Interface) -> Vec<String> {
    let mut found = Vec::new();
    if table.version != header.version {
        found.push(format!("version {} in the table, {} in the header", table.version, header.version));
    }
    for (name, old) in &table.structs {
        let Some(new) = header.structs.get(name) else {
            found.push(format!("breaks: struct {name} is gone"));
            continue;
        };
        for (index, field) in old.fields.iter().enumerate() {
            if new.fields.get(index) != Some(field) {
                found.push(format!("breaks: {name}: field {index} is {:?}, was {field:?}", new.fields.get(index)));
            }
        }
        for added in new.fields.iter().skip(old.fields.len()) {
            found.push(format!("add to the table: {name}: {added:?}, and raise QK_ABI_REVISION"));
        }
        if old.size != new.size {
            found.push(format!("add to the table: {name} has {} bytes, had {}", new.size, old.size));
        }
    }
    for function in &table.functions {
        if !header.functions.contains(function) {
            found.push(format!("breaks: no function `{function}`"));
        }
    }
    let added = header.structs.keys().filter(|name| !table.structs.contains_key(*name));
    found.extend(added.map(|name| format!("add to the table: struct {name}")));
    let added = header.functions.iter().filter(|function| !table.functions.contains(function));
    found.extend(added.map(|function| format!("add to the table: function `{function}`")));
    found
}

#[test]
fn the_header_has_the_committed_layout() {
    let (table, header) = (of_table(TABLE), of_header(HEADER));
    assert!(header.structs.len() > 20 && header.functions.len() > 30, "the header was not read");
    let found = differences(&table, &header);
    assert!(found.is_empty(), "the C interface is not what tests/abi/layout.txt says:\n{}", found.join("\n"));
}

/// The differences of a header in which `from` was replaced once.
fn changed(from: &str, to: &str) -> Vec<String> {
    assert!(HEADER.contains(from), "{from}");
    differences(&of_table(TABLE), &of_header(&HEADER.replacen(from, to, 1)))
}

#[test]
fn incompatible_changes_are_found() {
    let breaks = |from, to| {
        let found = changed(from, to);
        assert!(found.iter().any(|line| line.starts_with("breaks: ")), "{from} -> {to}: {found:?}");
    };
    breaks("QK_AT(qk_lora, scale, 8)", "QK_AT(qk_lora, scale, 12)");
    breaks("int64_t first_token;", "uint64_t first_token;");
    // A field between two others, whose offset is asserted.
    breaks(
        "const float *nested_map;",
        "const float *old_map; const float *nested_map; } qk_nf4; QK_AT(qk_nf4, old_map, 64)",
    );
    breaks("int qk_lora_down(", "int qk_lora_project(");
    breaks("const uint8_t *in, uint8_t *out", "uint8_t *out, const uint8_t *in");
    breaks("typedef struct qk_loss_state {", "struct qk_loss_state {");
}

#[test]
fn additions_ask_for_their_line() {
    let found = changed("} qk_lora;", "int64_t rank_stride; } qk_lora; QK_AT(qk_lora, rank_stride, 48)");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("add to the table: qk_lora: (48"), "{found:?}");
    let found = changed("int qk_lora_down(", "int qk_lora_new(void); int qk_lora_down(");
    assert_eq!(found, ["add to the table: function `int qk_lora_new(void)`"]);
    let found = changed("#define QK_ABI_VERSION 3u", "#define QK_ABI_VERSION 4u");
    assert_eq!(found, ["version 3 in the table, 4 in the header"]);
}
