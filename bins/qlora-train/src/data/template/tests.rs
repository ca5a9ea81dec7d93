use super::*;

/// A refusal by the clock, and not by a counted limit, says so.
#[test]
fn only_the_clock_is_said_to_be_the_clock() {
    let said = |stopped| explain_stopped(stopped, "render one conversation");
    let clock = said(Stopped::Time);
    for words in ["takes too long", "s of processor time to render one conversation", "stopped by the clock"] {
        assert!(clock.contains(words), "{clock}");
    }
    let counted = [(Stopped::Memory, "256 MiB"), (Stopped::Piece, "48 MiB"), (Stopped::Asked, "2048 MiB")];
    let others = [(Stopped::Requests, "10 million values"), (Stopped::Stack, "256 MiB of stack")];
    for (stopped, limit) in counted.into_iter().chain(others) {
        let text = said(stopped);
        assert!(text.contains(limit) && text.contains("takes too much") && !text.contains("clock"), "{text}");
    }
}
