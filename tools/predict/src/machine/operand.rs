//! Operands of an instruction as the disassembler writes them.

/// One instruction, taken apart.
#[derive(Debug, PartialEq)]
pub struct Parsed<'a> {
    /// The guard's predicate, and whether it has to be false.
    pub guard: Option<(&'a str, bool)>,
    /// `IMAD.WIDE.U32`
    pub opcode: &'a str,
    pub operands: Vec<&'a str>,
}

/// `@!P1 IADD3 R0, R1, 0x1, RZ`.
pub fn parse(text: &str) -> Parsed<'_> {
    let text = text.trim();
    let (guard, rest) = match text.strip_prefix('@') {
        Some(guarded) => {
            let (guard, rest) = guarded.split_once(' ').unwrap_or((guarded, ""));
            let negated = guard.starts_with('!');
            (Some((guard.trim_start_matches('!'), negated)), rest.trim())
        }
        None => (None, text),
    };
    let (opcode, operands) = rest.split_once(' ').unwrap_or((rest, ""));
    let operands = operands.split(',').map(|operand| operand.trim().trim_end_matches(".reuse")).collect::<Vec<_>>();
    Parsed { guard, opcode, operands: if operands == [""] { Vec::new() } else { operands } }
}

/// A source of 32 bits: `-R3.reuse`, `~UR4`, `c[0x0][0x170]`, `0x3f`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Source {
    Register(usize),
    Uniform(usize),
    Constant(u32),
    Immediate(u32),
    /// Zero: `RZ`, `URZ`
    Zero,
    /// A number of another kind
    Other,
}

/// The changes to a source before its use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Modifiers {
    pub negated: bool,
    pub inverted: bool,
    pub absolute: bool,
}

pub fn source(text: &str) -> (Source, Modifiers) {
    let mut modifiers = Modifiers::default();
    let mut text = text;
    if let Some(value) = immediate(text) {
        return (Source::Immediate(value), modifiers);
    }
    while let Some(first @ ('-' | '~' | '|')) = text.chars().next() {
        match first {
            '-' => modifiers.negated = true,
            '~' => modifiers.inverted = true,
            _ => modifiers.absolute = true,
        }
        text = text[1..].trim_end_matches('|');
    }
    (bare(text), modifiers)
}

/// Beyond what the system keeps among the constants, on every architecture.
const FIRST_ARGUMENT: u32 = 0x380;

fn bare(text: &str) -> Source {
    let text = if text.starts_with("c[") { text } else { text.split('.').next().unwrap_or(text) };
    if text == "RZ" || text == "URZ" {
        return Source::Zero;
    }
    if let Some(number) = text.strip_prefix("UR").and_then(|digits| digits.parse().ok()) {
        return Source::Uniform(number);
    }
    if let Some(number) = text.strip_prefix('R').and_then(|digits| digits.parse().ok()) {
        return Source::Register(number);
    }
    if let Some(offset) = text.strip_prefix("c[0x0][").and_then(|rest| rest.strip_suffix(']')) {
        // A computed place among the arguments: that of the first argument that it may be.
        let fixed = offset.rsplit('+').next().unwrap_or(offset);
        return Source::Constant(immediate(fixed).unwrap_or(FIRST_ARGUMENT));
    }
    Source::Other
}

pub fn immediate(text: &str) -> Option<u32> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let value = u32::from_str_radix(digits.strip_prefix("0x")?, 16).ok()?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// The sum of registers and a number inside brackets: `[R4+UR5+0x10]`, `desc[UR8][R2.64+0x80]`, `[R3.X4+0x10]`.
pub fn address(text: &str) -> Option<Vec<(Source, u32)>> {
    let inner = text.rsplit_once('[')?.1.strip_suffix(']')?;
    let mut terms = Vec::new();
    for term in inner.split('+') {
        let factor = match term.split_once(".X") {
            Some((_, digits)) => digits.split('.').next()?.parse().ok()?,
            None => 1,
        };
        terms.push((immediate(term).map_or_else(|| bare(term), Source::Immediate), factor));
    }
    Some(terms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_taken_apart() {
        let parsed = parse("@!P1 IADD3 R0, P2, R1.reuse, -0x1, RZ");
        assert_eq!(parsed.guard, Some(("P1", true)));
        assert_eq!((parsed.opcode, &parsed.operands[..]), ("IADD3", &["R0", "P2", "R1", "-0x1", "RZ"][..]));
        assert_eq!(parse("EXIT").operands, Vec::<&str>::new());
    }

    #[test]
    fn sources_and_addresses_are_read() {
        let plain = Modifiers::default();
        assert_eq!(source("R12"), (Source::Register(12), plain));
        assert_eq!(source("-UR4"), (Source::Uniform(4), Modifiers { negated: true, ..plain }));
        assert_eq!(source("|R4|"), (Source::Register(4), Modifiers { absolute: true, ..plain }));
        assert_eq!(source("c[0x0][0x170]"), (Source::Constant(0x170), plain));
        assert_eq!(source("-0x1"), (Source::Immediate(u32::MAX), plain));
        assert_eq!(source("1.5").0, Source::Other);
        let terms = address("desc[UR8][R2.64+0x80]").unwrap();
        assert_eq!(terms, [(Source::Register(2), 1), (Source::Immediate(0x80), 1)]);
        assert_eq!(address("[R3.X4+UR5+0x10]").unwrap()[..2], [(Source::Register(3), 4), (Source::Uniform(5), 1)]);
        assert_eq!(address("R3"), None);
    }
}
