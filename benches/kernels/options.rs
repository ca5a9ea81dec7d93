//! Options of the bench.

#[derive(Default)]
pub struct Options {
    pub bench: bool,
    pub facts: bool,
    pub quick: bool,
    pub record: Option<String>,
    pub filter: Option<String>,
}
