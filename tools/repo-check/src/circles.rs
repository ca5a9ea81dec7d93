//! Circles of imports between the files of a crate.
//!
//! A file imports another if a path in it (`use` or inline: `crate::…`, `super::…`, `self::…`, or a child module's
//! name) leads there. A re-export is an import where its own file uses the name; a path that goes through one counts
//! for the file that it ends in. Tests inside a file may import what they like.

use crate::files;
use crate::finding::{Finding, Rule};
use anyhow::{Context, Result};
use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use syn::visit::Visit;
use syn::{Attribute, Expr, ExprCall, Item, ItemMod, ItemUse, PatIdent, UseTree, Visibility};

/// Most re-exports that are followed one after the other, so that a circle of them ends.
const DEPTH: usize = 16;

type Segments = Vec<String>;

#[derive(Default)]
struct Module {
    file: String,
    /// Names that the module itself defines.
    items: BTreeSet<String>,
    /// Names that it re-exports, with the path that each stands for.
    reexports: BTreeMap<String, Segments>,
    /// Modules all of whose names it re-exports.
    globs: Vec<Segments>,
    /// Paths that it imports.
    imports: Vec<Segments>,
    /// Names that its code uses, which may be those of re-exports
    names: BTreeSet<String>,
    /// Names of functions that it calls
    called: BTreeSet<String>,
    /// Names of variables, which are no uses of a re-export
    bound: BTreeSet<String>,
    is_test: bool,
}

/// By module path; the crate's root has the empty one.
type Modules = BTreeMap<Segments, Module>;

/// The folders of all crates, by their root files; `names` are the repository's files.
pub fn roots(names: &[String]) -> BTreeSet<&str> {
    names.iter().filter_map(|name| name.strip_suffix("/lib.rs").or(name.strip_suffix("/main.rs"))).collect()
}

/// One finding a circle; its `file` names all files of the circle.
pub fn findings(root: &Path, folder: &str) -> Result<Vec<Finding>> {
    let mut names = Vec::new();
    files::walk(&root.join(folder), "", &mut names)?;
    let mut texts = Vec::new();
    // A program beside a library uses it by its name.
    let is_beside = names.iter().any(|name| name == "lib.rs");
    for name in names.into_iter().filter(|name| name.ends_with(".rs") && !(is_beside && name == "main.rs")) {
        let text = fs::read_to_string(root.join(folder).join(&name))
            .with_context(|| format!("cannot read {folder}/{name}"))?;
        texts.push((name, text));
    }
    let found = circles(&texts).with_context(|| format!("in {folder}"))?;
    let finding = |circle: Vec<String>| {
        let text = format!("these files import each other in a circle: {}", circle.join(", "));
        Finding::new(Rule::Circle, &format!("{folder}/{}", circle.first().cloned().unwrap_or_default()), 0, text)
    };
    Ok(found.into_iter().map(finding).collect())
}

/// The files of each circle, sorted. `texts`: names below the crate's folder, and what they hold.
fn circles(texts: &[(String, String)]) -> Result<Vec<Vec<String>>> {
    let mut modules = Modules::new();
    for (name, text) in texts {
        let file = syn::parse_file(text).with_context(|| format!("{name} is not Rust"))?;
        let path = module_path(name);
        read(&mut modules, path, name, &file.items);
    }
    let mut graph = DiGraphMap::<&str, ()>::new();
    for (path, module) in modules.iter().filter(|(path, _)| !is_test(&modules, path)) {
        let imported = module.imports.iter().filter_map(|import| resolve(&modules, path, import, DEPTH));
        let used = module.names.iter().filter_map(|name| follow(&modules, path, name, DEPTH));
        for target in imported.chain(used).filter(|target| !is_test(&modules, target)) {
            if let Some(target) = modules.get(&target).filter(|target| target.file != module.file) {
                graph.add_edge(&module.file, &target.file, ());
            }
        }
    }
    let circles = tarjan_scc(&graph).into_iter().filter(|circle| circle.len() > 1);
    let mut circles: Vec<Vec<String>> = circles
        .map(|circle| {
            let mut files: Vec<String> = circle.into_iter().map(str::to_owned).collect();
            files.sort_unstable();
            files
        })
        .collect();
    circles.sort_unstable();
    Ok(circles)
}

fn is_test(modules: &Modules, path: &[String]) -> bool {
    (1..=path.len()).any(|length| modules.get(&path[..length]).is_some_and(|module| module.is_test))
}

/// `a/b.rs` and `a/b/mod.rs` are the module `a::b`.
fn module_path(name: &str) -> Segments {
    let stem = name.trim_end_matches(".rs");
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    if ["lib", "main"].contains(&stem) { Vec::new() } else { stem.split('/').map(str::to_owned).collect() }
}

/// Notes a module and those inside of it. A module that was declared before its file was read keeps what is known of
/// it.
fn read(modules: &mut Modules, path: Segments, file: &str, items: &[Item]) {
    let mut reader = Reader { module: Module::default(), inner: Vec::new() };
    items.iter().for_each(|item| reader.item(item));
    let Reader { mut module, inner } = reader;
    let Module { names, called, bound, .. } = &mut module;
    names.retain(|name| !bound.contains(name) || called.contains(name));
    let known = modules.entry(path.clone()).or_default();
    let is_test = known.is_test;
    *known = Module { file: file.to_owned(), is_test, ..module };
    for (name, is_test, items) in inner {
        let child = [path.clone(), vec![name]].concat();
        match items {
            Some(items) => {
                read(modules, child.clone(), file, &items);
                modules.entry(child).or_default().is_test |= is_test;
            }
            None => modules.entry(child).or_default().is_test |= is_test,
        }
    }
}

struct Reader {
    module: Module,
    /// Name; true for a module of tests; and its items unless they are in another file.
    inner: Vec<(String, bool, Option<Vec<Item>>)>,
}

impl Reader {
    fn item(&mut self, item: &Item) {
        match item {
            Item::Mod(ItemMod { attrs, ident, content, .. }) => {
                let items = content.as_ref().map(|(_, items)| items.clone());
                self.inner.push((ident.to_string(), is_for_tests(attrs), items));
            }
            Item::Use(import) => self.import(import),
            other => {
                self.module.items.extend(name_of(other));
                self.visit_item(other);
            }
        }
    }

    fn import(&mut self, ItemUse { vis, tree, attrs, .. }: &ItemUse) {
        if is_for_tests(attrs) {
            return;
        }
        let is_reexport = !matches!(vis, Visibility::Inherited);
        for (path, name) in leaves(tree, &[]) {
            match (is_reexport, name) {
                (true, Some(name)) => {
                    self.module.reexports.insert(name, path);
                }
                (true, None) => self.module.globs.push(path),
                (false, _) => self.module.imports.push(path),
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        self.import(import);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if path.leading_colon.is_none() {
            self.module.names.extend(segments.first().cloned());
            if segments.len() > 1 {
                self.module.imports.push(segments);
            }
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        if let Expr::Path(function) = &*call.func {
            self.module.called.extend(function.path.get_ident().map(ToString::to_string));
        }
        syn::visit::visit_expr_call(self, call);
    }

    fn visit_pat_ident(&mut self, pattern: &'ast PatIdent) {
        let name = pattern.ident.to_string();
        // A pattern in capitals is a constant.
        let names = if name.starts_with(char::is_uppercase) { &mut self.module.names } else { &mut self.module.bound };
        names.insert(name);
        syn::visit::visit_pat_ident(self, pattern);
    }

    /// `pub(in crate::room)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
    })
}

fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(ident.to_string())
}

/// The paths of a `use`, each with the name that it brings; none for `*`.
fn leaves(tree: &UseTree, before: &[String]) -> Vec<(Segments, Option<String>)> {
    let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &with(&path.ident)),
        UseTree::Name(name) if name.ident == "self" => vec![(before.to_vec(), before.last().cloned())],
        UseTree::Name(name) => vec![(with(&name.ident), Some(name.ident.to_string()))],
        UseTree::Rename(rename) => vec![(with(&rename.ident), Some(rename.rename.to_string()))],
        UseTree::Glob(_) => vec![(before.to_vec(), None)],
        UseTree::Group(group) => group.items.iter().flat_map(|tree| leaves(tree, before)).collect(),
    }
}

/// The module that a path leads to from `module`; none if it leaves the crate.
fn resolve(modules: &Modules, module: &[String], path: &[String], depth: usize) -> Option<Segments> {
    let mut at = module.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (at, rest) = (Vec::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while let Some("super") = rest.first().map(String::as_str) {
                at.pop()?;
                rest = &rest[1..];
            }
        }
        // A child module, or a name from elsewhere, which has its own `use`.
        first if !modules.contains_key(&[module, &[first.to_owned()]].concat()) => return None,
        _ => {}
    }
    while let Some((name, after)) = rest.split_first() {
        let child = [&at[..], std::slice::from_ref(name)].concat();
        if modules.contains_key(&child) {
            (at, rest) = (child, after);
            continue;
        }
        let Some(next) = follow(modules, &at, name, depth) else { break };
        (at, rest) = (next, after);
    }
    Some(at)
}

/// The module in which a re-exported name ends, none if the module does not re-export it.
fn follow(modules: &Modules, at: &[String], name: &String, depth: usize) -> Option<Segments> {
    let module = modules.get(at)?;
    if depth == 0 || module.items.contains(name) {
        return None;
    }
    if let Some(target) = module.reexports.get(name) {
        return resolve(modules, at, target, depth - 1);
    }
    module.globs.iter().find_map(|target| {
        let target = resolve(modules, at, target, depth - 1)?;
        let holds = modules.get(&target)?.items.contains(name);
        if holds { Some(target) } else { follow(modules, &target, name, depth - 1) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let texts: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        circles(&texts).unwrap()
    }

    #[test]
    fn two_files_that_import_each_other_are_a_circle() {
        let files = [
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "use super::a::A; pub struct B;"),
        ];
        assert_eq!(found(&files), [["a.rs", "b.rs"]]);
        let inline = [("lib.rs", ""), ("a.rs", "fn a() { crate::b::b() }"), ("b.rs", "fn b() { let _: crate::a::A; }")];
        assert_eq!(found(&inline), [["a.rs", "b.rs"]]);
        let one_way = [("lib.rs", ""), ("a.rs", "use crate::b::B;"), ("b.rs", "use std::fmt; pub struct B;")];
        assert!(found(&one_way).is_empty());
    }

    #[test]
    fn a_re_export_is_no_import_and_leads_to_where_the_name_is() {
        let files = [
            ("lib.rs", "mod room;"),
            ("room/mod.rs", "mod a; mod b; pub use a::A; pub use b::*;"),
            ("room/a.rs", "use super::B; pub struct A;"),
            ("room/b.rs", "pub struct B;"),
        ];
        assert!(found(&files).is_empty());
        let mut circle = files;
        circle[3].1 = "use crate::room::A; pub struct B;";
        assert_eq!(found(&circle), [["room/a.rs", "room/b.rs"]]);
    }

    #[test]
    fn a_re_export_that_its_own_file_uses_is_an_import() {
        let with = |room: &str, a: &str| {
            found(&[("lib.rs", "mod room;"), ("room/mod.rs", room), ("room/a.rs", a), ("room/b.rs", "pub struct B;")])
        };
        let circle = [["room/a.rs", "room/mod.rs"]];
        let a = "use super::Room; pub struct A; pub fn make() -> A { A }";
        assert_eq!(with("mod a; pub use a::A; pub struct Room { a: A }", a), circle);
        assert_eq!(with("mod a; pub use a::*; pub struct Room { a: A }", a), circle);
        assert_eq!(with("mod a; pub use a::{A, make}; pub struct Room; fn f() { make(); }", a), circle);
        assert_eq!(with("mod a; pub(crate) use a::A; pub struct Room; impl Room { fn f() { A::new() } }", a), circle);
        // One that is only handed on, one of another file, and a variable of its name are none.
        assert!(with("mod a; pub use a::A; pub struct Room;", a).is_empty());
        assert!(with("mod a; mod b; pub use a::A; pub use b::B; pub struct Room { b: B }", a).is_empty());
        let variable = "mod a; pub use a::make; pub struct Room; fn f() { let make = 1; g(make) }";
        assert!(with(variable, a).is_empty());
        let called = "mod a; pub use a::make; pub struct Room; fn f() { let make = make(); g(make) }";
        assert_eq!(with(called, a), circle);
        // One that a child may name in a visibility is none either.
        let seen = "pub struct A; impl A { pub(in crate::room) fn f() {} }";
        assert!(with("mod a; pub use a::A; pub struct Room { a: A }", seen).is_empty());
    }

    #[test]
    fn a_program_is_the_root_of_its_crate() {
        let files = [("main.rs", "mod a; const N: usize = 1; fn main() { a::run() }"), ("a.rs", "use crate::N;")];
        assert_eq!(found(&files), [["a.rs", "main.rs"]]);
        let names = ["src/lib.rs", "src/a.rs", "tools/x/src/main.rs", "README.md"].map(str::to_owned);
        assert_eq!(roots(&names).into_iter().collect::<Vec<_>>(), ["src", "tools/x/src"]);
    }

    #[test]
    fn a_parent_that_uses_its_child_which_uses_it_is_a_circle() {
        let files =
            [("lib.rs", ""), ("a/mod.rs", "mod b; use b::f; pub struct A;"), ("a/b.rs", "use super::A; pub fn f() {}")];
        assert_eq!(found(&files), [["a/b.rs", "a/mod.rs"]]);
    }

    #[test]
    fn tests_may_import_what_they_like() {
        let files = [
            ("lib.rs", "#[cfg(test)] mod t;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }"),
            ("t.rs", "use crate::a::A; use crate::u;"),
            ("u.rs", "use crate::t;"),
        ];
        assert!(found(&files).is_empty());
    }
}
