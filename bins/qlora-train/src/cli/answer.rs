//! Answer of a command: for people, and for programs.

use serde_json::Value;

pub(super) struct Answer {
    pub text: String,
    pub json: Value,
}
