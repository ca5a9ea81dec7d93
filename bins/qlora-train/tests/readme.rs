//! The README's table of settings is the one the program is made from. `QLORA_UPDATE_README=1` writes it anew.

use qlora_train::config::settings_markdown;
use std::path::Path;

const BEGIN: &str = "<!-- settings -->\n";
const END: &str = "<!-- /settings -->";

#[test]
fn the_readme_holds_the_settings_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("README.md has no settings marker");
    let (found, tail) = rest.split_once(END).expect("README.md has no closing settings marker");
    let expected = settings_markdown();
    if std::env::var_os("QLORA_UPDATE_README").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{expected}{END}{tail}")).unwrap();
        return;
    }
    assert_eq!(found, expected, "run this test with QLORA_UPDATE_README=1");
}
