//! A warp's registers, as integer instructions change them. Floating-point numbers are not followed.

use super::lanes::{self, Mask, Predicate, Value};
use super::operand::{Modifiers, Parsed, Source, address, immediate, source};

/// The stand-in for an argument of a kernel, each of its two words where it has 64 bits: a multiple of every tile and
/// alignment, larger than a warp reaches, and another for every argument.
fn argument(offset: u32) -> u32 {
    8192 * (1 + offset)
}

#[derive(Clone, Debug)]
pub struct Registers {
    threads: u32,
    registers: Vec<Value>,
    uniform: Vec<Value>,
    /// P0 … P6, then UP0 … UP6
    predicates: [Predicate; 16],
}

const ALL: Mask = Mask { bits: u32::MAX, supposed: false };
const NONE: Mask = Mask { bits: 0, supposed: false };

impl Registers {
    /// Registers of the first warp of the first block, of `threads` threads.
    pub fn new(threads: u32) -> Self {
        Self { threads, registers: vec![None; 256], uniform: vec![None; 128], predicates: [None; 16] }
    }

    fn index_of_predicate(name: &str) -> Option<usize> {
        let (digits, first) = match name.strip_prefix("UP") {
            Some(digits) => (digits, 8),
            None => (name.strip_prefix('P')?, 0),
        };
        digits.parse::<usize>().ok().filter(|number| *number < 7).map(|number| first + number)
    }

    /// `P0`, `!UP1`, `PT`.
    pub fn predicate(&self, name: &str) -> Predicate {
        let (negated, name) = match name.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let mask = match name {
            "PT" | "UPT" => Some(ALL),
            _ => Self::index_of_predicate(name).and_then(|index| self.predicates[index]),
        };
        mask.map(|mask| if negated { Mask { bits: !mask.bits, ..mask } } else { mask })
    }

    fn is_predicate(name: &str) -> bool {
        matches!(name.trim_start_matches('!'), "PT" | "UPT")
            || Self::index_of_predicate(name.trim_start_matches('!')).is_some()
    }

    fn set_predicate(&mut self, name: &str, guard: Predicate, value: Predicate) {
        let Some(index) = Self::index_of_predicate(name) else { return };
        let old = self.predicates[index];
        self.predicates[index] = match guard {
            Some(Mask { bits: u32::MAX, supposed: false }) => value,
            Some(guard) => value.zip(old).map(|(value, old)| Mask {
                bits: value.bits & guard.bits | old.bits & !guard.bits,
                supposed: value.supposed || old.supposed || guard.supposed,
            }),
            None => None,
        };
    }

    fn plain(&self, source: Source) -> Value {
        match source {
            Source::Register(number) => self.registers.get(number)?.clone(),
            Source::Uniform(number) => self.uniform.get(number)?.clone(),
            Source::Zero => lanes::uniform(0),
            Source::Immediate(value) => lanes::uniform(value),
            // The size of a block, where the launch has left it; then what the system keeps; then the arguments.
            Source::Constant(0 | 0x360) => lanes::uniform(self.threads),
            Source::Constant(offset) if offset < 0x28 => lanes::uniform(1),
            Source::Constant(offset) => lanes::supposed(argument(offset)),
            Source::Other => None,
        }
    }

    fn value(&self, text: &str) -> Value {
        let (source, Modifiers { negated, inverted, absolute }) = source(text);
        let mut value = self.plain(source);
        if absolute {
            value = lanes::map(&value, |value| (value as i32).unsigned_abs());
        }
        if inverted {
            value = lanes::map(&value, |value| !value);
        }
        if negated {
            value = lanes::map(&value, u32::wrapping_neg);
        }
        value
    }

    /// The upper half of the pair that a register names.
    fn upper(&self, text: &str) -> Value {
        match source(text).0 {
            Source::Register(number) => self.plain(Source::Register(number + 1)),
            Source::Uniform(number) => self.plain(Source::Uniform(number + 1)),
            Source::Constant(offset) => self.plain(Source::Constant(offset + 4)),
            Source::Immediate(value) => lanes::uniform(if value >> 31 == 1 { u32::MAX } else { 0 }),
            Source::Zero => lanes::uniform(0),
            Source::Other => None,
        }
    }

    fn set(&mut self, name: &str, guard: Predicate, value: Value) {
        let slot = match source(name).0 {
            Source::Register(number) => self.registers.get_mut(number),
            Source::Uniform(number) => self.uniform.get_mut(number),
            _ => None,
        };
        if let Some(slot) = slot {
            *slot = if guard == Some(ALL) { value } else { lanes::select(guard, &value, slot) };
        }
    }

    fn set_upper(&mut self, name: &str, guard: Predicate, value: Value) {
        match source(name).0 {
            Source::Register(number) => self.set(&format!("R{}", number + 1), guard, value),
            Source::Uniform(number) => self.set(&format!("UR{}", number + 1), guard, value),
            _ => {}
        }
    }

    /// The lower 32 bits of an address in brackets.
    pub fn address(&self, text: &str) -> Value {
        let mut sum = lanes::uniform(0);
        for (source, factor) in address(text)? {
            let term = lanes::map(&self.plain(source), |value| value.wrapping_mul(factor));
            sum = lanes::zip(&sum, &term, u32::wrapping_add);
        }
        sum
    }

    /// True in the lanes where the instruction runs, by its guard.
    pub fn guard(&self, parsed: &Parsed) -> Predicate {
        match parsed.guard {
            None => Some(ALL),
            Some((name, negated)) => {
                self.predicate(name).map(|mask| if negated { Mask { bits: !mask.bits, ..mask } } else { mask })
            }
        }
    }

    /// Changes the registers as the instruction does. The results of an instruction that is not followed are unknown.
    pub fn execute(&mut self, parsed: &Parsed) {
        let guard = self.guard(parsed);
        if guard.is_some_and(|guard| guard.bits == 0 && !guard.supposed) {
            return;
        }
        let dots: Vec<&str> = parsed.opcode.split('.').collect();
        let has = |suffix: &str| dots.contains(&suffix);
        let operands = &parsed.operands;
        let Some(&first) = operands.first() else { return };
        let (name, is_uniform) = match dots[0].strip_prefix('U') {
            Some(rest) if !matches!(dots[0], "UBREV") => (rest, true),
            _ => (dots[0], false),
        };
        let _ = is_uniform;
        // Predicates come after the result where an instruction makes both, and last where it reads one.
        let written: Vec<&str> =
            operands[1..].iter().take_while(|operand| Self::is_predicate(operand)).copied().collect();
        let sources: Vec<&str> = operands[1 + written.len()..].to_vec();
        let of = |index: usize| sources.get(index).map_or_else(|| lanes::uniform(0), |text| self.value(text));
        match name {
            "MOV" | "MOV32I" | "R2UR" => {
                let value = of(0);
                self.set(first, guard, value);
            }
            "LDC" | "LDCU" => {
                let (value, upper) = (of(0), sources.first().and_then(|text| self.upper(text)));
                self.set(first, guard, value);
                if has("64") || has("128") {
                    self.set_upper(first, guard, upper);
                }
            }
            "S2R" | "CS2R" | "S2UR" => {
                let value = match sources.first().copied().unwrap_or_default() {
                    "SR_TID.X" | "SR_LANEID" => lanes::of_lanes(|lane| lane),
                    "SR_CLOCKLO" => None,
                    "SR_LEMASK" | "SR_LTMASK" | "SR_GEMASK" | "SR_GTMASK" | "SR_EQMASK" => None,
                    // Block numbers, threads across, the place of shared memory.
                    _ => lanes::uniform(0),
                };
                self.set(first, guard, value);
            }
            "LDC64" => self.set(first, guard, None),
            "IMAD" => self.multiply_add(&dots, first, guard, &sources),
            "IADD3" | "IADD" | "VIADD" | "IADD2" => {
                let mut sum = lanes::zip3(&of(0), &of(1), &of(2), |a, b, c| a.wrapping_add(b).wrapping_add(c));
                if has("X") {
                    // The upper half of an address; a carry is not followed.
                    sum = lanes::zip(&lanes::zip(&of(0), &of(1), u32::wrapping_add), &of(2), u32::wrapping_add);
                }
                if has("64") {
                    let upper = (0..2).map(|index| sources.get(index).and_then(|text| self.upper(text)));
                    let upper: Vec<Value> = upper.collect();
                    let upper = lanes::zip(&upper[0], &upper[1], u32::wrapping_add);
                    self.set_upper(first, guard, upper);
                }
                self.set(first, guard, sum);
                written.iter().for_each(|carry| self.set_predicate(carry, guard, Some(NONE)));
            }
            "LOP3" => self.logic(first, guard, &written, &operands[1 + written.len()..]),
            "SHF" => {
                let amount = lanes::map(&of(1), |amount| amount & 63);
                let value = match (has("L"), has("HI"), has("U64") || has("S64")) {
                    (true, true, _) => lanes::zip3(&of(0), &amount, &of(2), |low, amount, high| {
                        let wide = u64::from(high) << 32 | u64::from(low);
                        (wide.checked_shl(amount).unwrap_or(0) >> 32) as u32
                    }),
                    (true, false, _) => lanes::zip(&of(0), &amount, |low, amount| low.checked_shl(amount).unwrap_or(0)),
                    (false, true, _) => {
                        let signed = has("S32") || has("S64");
                        lanes::zip(&of(2), &amount, move |high, amount| {
                            if signed {
                                ((high as i32) >> amount.min(31)) as u32
                            } else {
                                high.checked_shr(amount).unwrap_or(0)
                            }
                        })
                    }
                    (false, false, _) => lanes::zip3(&of(0), &amount, &of(2), |low, amount, high| {
                        let wide = u64::from(high) << 32 | u64::from(low);
                        wide.checked_shr(amount).unwrap_or(0) as u32
                    }),
                };
                self.set(first, guard, value);
            }
            "LEA" => self.shift_add(&dots, first, guard, &sources),
            "SEL" => {
                let value = match sources.last().filter(|text| Self::is_predicate(text)) {
                    Some(predicate) => lanes::select(self.predicate(predicate), &of(0), &of(1)),
                    None => None,
                };
                self.set(first, guard, value);
            }
            "IABS" => {
                let value = lanes::map(&of(0), |value| (value as i32).unsigned_abs());
                self.set(first, guard, value);
            }
            "IMNMX" | "VIMNMX" => {
                let is_least = sources.last().is_some_and(|text| matches!(*text, "PT" | "UPT"));
                let signed = !has("U32");
                let value = lanes::zip(&of(0), &of(1), move |a, b| match (is_least, signed) {
                    (true, true) => (a as i32).min(b as i32) as u32,
                    (false, true) => (a as i32).max(b as i32) as u32,
                    (true, false) => a.min(b),
                    (false, false) => a.max(b),
                });
                self.set(first, guard, value);
            }
            "PRMT" => {
                let value = lanes::zip3(&of(0), &of(1), &of(2), |a, selector, b| {
                    let bytes = u64::from(b) << 32 | u64::from(a);
                    (0..4).fold(0, |result, place| {
                        let select = selector >> (4 * place) & 7;
                        result | ((bytes >> (8 * select)) as u32 & 0xff) << (8 * place)
                    })
                });
                self.set(first, guard, value);
            }
            "ISETP" => {
                let value = self.compared(&dots, operands);
                self.set_predicate(first, guard, value);
                if let Some(other) = operands.get(1) {
                    self.set_predicate(other, guard, None);
                }
            }
            "PLOP3" => {
                for operand in operands.iter().take(2) {
                    self.set_predicate(operand, guard, None);
                }
            }
            _ => self.forget(&dots, operands, guard),
        }
    }

    fn multiply_add(&mut self, dots: &[&str], first: &str, guard: Predicate, sources: &[&str]) {
        let has = |suffix: &str| dots.contains(&suffix);
        let of = |index: usize| sources.get(index).map_or_else(|| lanes::uniform(0), |text| self.value(text));
        let signed = !has("U32");
        let product = move |a: u32, b: u32| {
            if signed { (i64::from(a as i32) * i64::from(b as i32)) as u64 } else { u64::from(a) * u64::from(b) }
        };
        let (a, b, c) = (of(0), of(1), of(2));
        if has("HI") {
            let value = lanes::zip3(&a, &b, &c, move |a, b, c| ((product(a, b) >> 32) as u32).wrapping_add(c));
            self.set(first, guard, value);
            return;
        }
        let low = lanes::zip3(&a, &b, &c, |a, b, c| a.wrapping_mul(b).wrapping_add(c));
        if has("WIDE") {
            let upper = sources.get(2).and_then(|text| self.upper(text));
            let products = lanes::zip(&a, &b, move |a, b| (product(a, b) >> 32) as u32);
            // The carry out of the lower half.
            let carry = lanes::zip3(&a, &b, &c, |a, b, c| u32::from(a.wrapping_mul(b).checked_add(c).is_none()));
            let high = lanes::zip3(&products, &upper, &carry, |a, b, c| a.wrapping_add(b).wrapping_add(c));
            self.set_upper(first, guard, high);
        }
        self.set(first, guard, low);
    }

    /// Three inputs through a truth table of eight bits.
    fn logic(&mut self, first: &str, guard: Predicate, written: &[&str], sources: &[&str]) {
        let numbers: Vec<&str> = sources.iter().filter(|text| !Self::is_predicate(text)).copied().collect();
        let table = numbers.get(3).and_then(|text| immediate(text));
        let value = match (table, &numbers[..]) {
            (Some(table), [a, b, c, ..]) => {
                let part = |value: &Value| match table {
                    // A result that does not depend on an unknown input is known.
                    0xc0 | 0x30 | 0xfc | 0xf0 => value.clone().or_else(|| lanes::uniform(0)),
                    _ => value.clone(),
                };
                let (a, b, c) = (self.value(a), self.value(b), part(&self.value(c)));
                lanes::zip3(&a, &b, &c, move |a, b, c| {
                    let term = |index: u32| {
                        let a = if index & 4 != 0 { a } else { !a };
                        let b = if index & 2 != 0 { b } else { !b };
                        let c = if index & 1 != 0 { c } else { !c };
                        a & b & c
                    };
                    (0..8).filter(|index| table >> index & 1 == 1).fold(0, |value, index| value | term(index))
                })
            }
            _ => None,
        };
        let is_not_zero = lanes::compare(&value, &lanes::uniform(0), |a, b| a != b).filter(|mask| !mask.supposed);
        // `LOP3.LUT P0, RZ, R2, …`: the predicate stands first.
        if Self::is_predicate(first) {
            self.set_predicate(first, guard, is_not_zero);
            return;
        }
        self.set(first, guard, value);
        written.iter().for_each(|name| self.set_predicate(name, guard, is_not_zero));
    }

    fn shift_add(&mut self, dots: &[&str], first: &str, guard: Predicate, sources: &[&str]) {
        let numbers: Vec<&str> = sources.iter().filter(|text| !Self::is_predicate(text)).copied().collect();
        let of = |index: usize| numbers.get(index).map_or_else(|| lanes::uniform(0), |text| self.value(text));
        let value = if dots.contains(&"HI") {
            // a, b, the upper half of a, shift
            let amount = numbers.last().and_then(|text| immediate(text)).unwrap_or(0).min(31);
            let (low, high) = (of(0), if numbers.len() > 3 { of(2) } else { lanes::uniform(0) });
            let signed = dots.contains(&"SX32");
            let shifted = lanes::zip(&low, &high, move |low, high| {
                let high = if signed { ((low as i32) >> 31) as u32 } else { high };
                ((u64::from(high) << 32 | u64::from(low)) << amount >> 32) as u32
            });
            lanes::zip(&shifted, &of(1), u32::wrapping_add)
        } else {
            let amount = numbers.get(2).and_then(|text| immediate(text)).unwrap_or(0).min(31);
            lanes::zip(&of(0), &of(1), move |a, b| (a << amount).wrapping_add(b))
        };
        self.set(first, guard, value);
    }

    /// `ISETP.GE.U32.AND P0, PT, R4, UR4, PT`.
    fn compared(&self, dots: &[&str], operands: &[&str]) -> Predicate {
        let numbers: Vec<&str> = operands.iter().filter(|text| !Self::is_predicate(text)).take(2).copied().collect();
        let (a, b) = (self.value(numbers.first()?), self.value(numbers.get(1)?));
        let signed = !dots.contains(&"U32");
        let relation = *dots.get(1)?;
        // // A comparison of an argument with zero chooses between variants of a kernel, which a stand-in cannot do.
        let against_zero = numbers.iter().any(|text| matches!(*text, "RZ" | "URZ" | "0x0"));
        let mut mask = lanes::compare(&a, &b, move |a, b| {
            let order = if signed { (a as i32).cmp(&(b as i32)) } else { a.cmp(&b) };
            match relation {
                "LT" => order.is_lt(),
                "LE" => order.is_le(),
                "GT" => order.is_gt(),
                "GE" => order.is_ge(),
                "EQ" => order.is_eq(),
                _ => order.is_ne(),
            }
        })?;
        if mask.supposed && (against_zero || matches!(relation, "EQ" | "NE")) {
            return None;
        }
        // The upper halves of 64-bit comparisons: those of what is compared here are equal.
        let combined = if dots.contains(&"EX") { operands.last() } else { operands.get(4) };
        if let Some(other) = combined.filter(|text| Self::is_predicate(text)) {
            let other = self.predicate(other)?;
            let bits = match dots.contains(&"OR") {
                _ if dots.contains(&"EX") => other.bits,
                true => mask.bits | other.bits,
                false => mask.bits & other.bits,
            };
            mask = Mask { bits, supposed: mask.supposed || other.supposed };
        }
        Some(mask)
    }

    /// Makes the results of an instruction that is not followed unknown.
    fn forget(&mut self, dots: &[&str], operands: &[&str], guard: Predicate) {
        let writes_nothing = matches!(
            dots[0],
            "STS"
                | "STG"
                | "ST"
                | "STL"
                | "BAR"
                | "EXIT"
                | "BRA"
                | "LDGSTS"
                | "DEPBAR"
                | "LDGDEPBAR"
                | "BSSY"
                | "BSYNC"
                | "NOP"
                | "WARPSYNC"
                | "RET"
                | "CALL"
                | "RED"
                | "MEMBAR"
                | "ERRBAR"
                | "CCTL"
                | "YIELD"
        );
        if writes_nothing {
            return;
        }
        for operand in operands.iter().take_while(|operand| Self::is_predicate(operand)).take(2) {
            self.set_predicate(operand, guard, None);
        }
        let Some(result) = operands.iter().find(|operand| !Self::is_predicate(operand)) else { return };
        let words = match dots[0] {
            "HMMA" | "IMMA" | "LDSM" => 4,
            _ if dots.contains(&"128") => 4,
            _ if dots.contains(&"64") => 2,
            _ => 1,
        };
        let Source::Register(number) = source(result).0 else {
            self.set(result, guard, None);
            return;
        };
        for word in 0..words {
            self.set(&format!("R{}", number + word), guard, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::operand;

    fn after(lines: &[&str]) -> Registers {
        let mut registers = Registers::new(256);
        lines.iter().for_each(|line| registers.execute(&operand::parse(line)));
        registers
    }

    fn lanes_of(registers: &Registers, address: &str) -> Option<[u32; 3]> {
        registers.address(address).map(|known| [known.lanes[0], known.lanes[1], known.lanes[31]])
    }

    #[test]
    fn addresses_follow_from_the_threads_number() {
        let lane = "S2R R0, SR_TID.X";
        let cases: [(&[&str], [u32; 3]); 8] = [
            (&["IMAD.SHL.U32 R1, R0, 0x4, RZ"], [0, 4, 124]),
            (&["SHF.R.U32.HI R1, RZ, 0x2, R0"], [0, 0, 7]),
            (&["LOP3.LUT R1, R0, 0x3, RZ, 0xc0, !PT"], [0, 1, 3]),
            (&["LOP3.LUT R1, R0, 0x1f, RZ, 0x3c, !PT"], [31, 30, 0]),
            (&["LEA R1, R0, 0x40, 0x3"], [64, 72, 312]),
            (&["IADD3 R2, -R0, 0x20, RZ", "IMAD R1, R2, 0x10, R0"], [512, 497, 47]),
            (&["ISETP.GE.AND P0, PT, R0, 0x1, PT", "SEL R1, R0, 0x63, P0"], [99, 1, 31]),
            (&["ISETP.GE.AND P0, PT, R0, 0x1, PT", "MOV R1, 0x5", "@P0 IADD3 R1, R0, 0x64, RZ"], [5, 101, 131]),
        ];
        for (lines, expected) in cases {
            let registers = after(&[&[lane], lines].concat());
            assert_eq!(lanes_of(&registers, "[R1]"), Some(expected), "{lines:?}");
        }
        let registers = after(&[lane, "UMOV UR4, 0x400"]);
        assert_eq!(lanes_of(&registers, "[R0.X4+UR4+0x10]"), Some([1040, 1044, 1164]));
    }

    #[test]
    fn what_comes_from_memory_is_not_known_and_arguments_are_supposed() {
        let registers = after(&["S2R R0, SR_TID.X", "LDG.E R1, [R0.64]", "IADD3 R2, R1, R0, RZ"]);
        assert_eq!(lanes_of(&registers, "[R2]"), None);
        let registers = after(&[
            "S2R R0, SR_TID.X",
            "IMAD R2, R0, c[0x0][0x170], RZ",
            "ISETP.LT.AND P0, PT, R0, c[0x0][0x174], PT",
            "ISETP.NE.AND P1, PT, RZ, c[0x0][0x178], PT",
        ]);
        assert!(registers.address("[R2]").unwrap().supposed);
        assert_eq!(registers.predicate("P0"), Some(Mask { bits: u32::MAX, supposed: true }));
        // A stand-in cannot say whether there is such an argument.
        assert_eq!(registers.predicate("P1"), None);
        // The size of a block is no argument.
        assert!(!after(&["MOV R2, c[0x0][0x0]"]).address("[R2]").unwrap().supposed);
    }
}
