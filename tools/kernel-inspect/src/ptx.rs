//! Looks in PTX for multiplications and additions that were, or may yet be, contracted into one rounding.

use anyhow::{Result, ensure};

/// Kernels whose results are defined by two roundings (a code's value times absmax; nested code times nested absmax
/// plus offset; what dropout keeps times its factor, or a row times the embedding's scale, added to a gradient), and
/// how many `fma` their source asks for: the low-rank term of the small-M kernel, both sums of the generic one after
/// unrolling, both of the generic dX, one of the generic gradients, and the boundaries of the maps of the optimizer.
/// One more is a contraction.
pub const TWO_ROUNDINGS: [(&str, usize); 27] = [
    ("quantize_blocks<float>", 0),
    ("quantize_blocks<__nv_bfloat16>", 0),
    ("quantize_absmax", 0),
    ("mean", 0),
    ("dequantize<float>", 0),
    ("dequantize<__nv_bfloat16>", 0),
    ("dequantize_rows", 0),
    ("adamw_update", 4),
    ("gradient_partials", 0),
    ("gradient_state", 0),
    ("linear_forward<Config<128, 8, 3, false, true>>", 0),
    ("linear_forward<Config<64, 4, 3, false, true>>", 0),
    ("linear_forward<Config<64, 4, 3, false, false>>", 0),
    ("linear_small_m<4, false>", 1),
    ("linear_small_m<1, false>", 1),
    ("linear_generic", 4),
    ("linear_dx<Config<128, 8, 3, false>>", 0),
    ("linear_dx<Config<64, 4, 3, false>>", 0),
    ("linear_dx_generic", 2),
    ("lora_gradients<1, false>", 0),
    ("lora_gradients<1, true>", 0),
    ("lora_gradients<2, false>", 0),
    ("lora_gradients<2, true>", 0),
    ("lora_gradients<4, false>", 0),
    ("lora_gradients<4, true>", 0),
    ("lora_gradients_generic", 1),
    ("embedding_backward<8>", 0),
];

/// Floating-point instructions of one kernel.
#[derive(Debug, Default, PartialEq)]
pub struct Arithmetic {
    /// Mangled.
    pub name: String,
    /// Multiply-adds with one rounding: `fma`, `mad`.
    pub fused: usize,
    /// Multiplications that name no rounding: the next compiler may still contract them with an addition.
    pub fusible: usize,
    /// Multiplications and additions that name their rounding, which no compiler may contract.
    pub rounded: usize,
}

pub fn parse(ptx: &str) -> Vec<Arithmetic> {
    let mut kernels: Vec<Arithmetic> = Vec::new();
    for line in ptx.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once(".entry ") {
            let name = rest.split(|c: char| c == '(' || c.is_whitespace()).next().unwrap_or_default();
            kernels.push(Arithmetic { name: name.to_owned(), ..Arithmetic::default() });
        } else if let Some(kernel) = kernels.last_mut() {
            for statement in line.split(';') {
                count(statement, kernel);
            }
        }
    }
    kernels
}

fn count(statement: &str, kernel: &mut Arithmetic) {
    let mut words = statement.trim_start_matches(['{', '\t', ' ']).split_whitespace();
    let Some(opcode) = words.find(|word| !word.starts_with('@')) else { return };
    let parts: Vec<&str> = opcode.split('.').collect();
    let float = ["f32", "f64", "f32x2", "f16", "f16x2", "bf16", "bf16x2"];
    if !parts.last().is_some_and(|last| float.contains(last)) {
        return;
    }
    let rounded = parts.iter().any(|part| ["rn", "rz", "rm", "rp"].contains(part));
    match (parts[0], rounded) {
        ("fma" | "mad", _) => kernel.fused += 1,
        ("mul", false) => kernel.fusible += 1,
        ("mul" | "add" | "sub", true) => kernel.rounded += 1,
        _ => {}
    }
}

/// Faults among `listed` (name and number of `fma` its source asks for), one line each.
pub fn findings(kernels: &[(String, Arithmetic)], listed: &[(&str, usize)]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (name, asked_for) in listed {
        let found: Vec<_> = kernels.iter().filter(|(found, _)| found == name).collect();
        ensure!(!found.is_empty(), "the PTX has no kernel {name}: it was renamed, and its entry in the list was not");
        for (_, arithmetic) in found {
            if arithmetic.fused != *asked_for {
                findings.push(format!(
                    "{name}: {} contracted multiply-adds (its source asks for {asked_for}); write __fmul_rn and __fadd_rn",
                    arithmetic.fused
                ));
            }
            if arithmetic.fusible > 0 {
                let count = arithmetic.fusible;
                findings
                    .push(format!("{name}: {count} multiplications without a rounding of their own; write __fmul_rn"));
            }
            if arithmetic.rounded == 0 {
                findings
                    .push(format!("{name}: no multiplication or addition at all, so this is not the kernel it was"));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "
.version 9.0
.target sm_80
.visible .entry _Z6soundv(
	.param .u64 a
)
{
	mul.rn.f32 	%f3, %f1, %f2;
	{ add.rn.f32 %f4, %f3, %f1; }
	mad.lo.s32 	%r3, %r1, %r2, %r4;
	mul.wide.u32 %rd1, %r1, 4;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};
}
.entry _Z5fusedv(
)
{
	mul.rn.f32 	%f3, %f1, %f2;
	@%p1 fma.rn.f32 %f5, %f1, %f2, %f3;
}
.entry _Z7fusiblev(
)
{
	mul.f32 	%f3, %f1, %f2;
	add.rn.f32 	%f4, %f3, %f1;
}
.entry _Z5emptyv( )
{
}
";

    fn check(name: &str, asked_for: usize) -> Result<Vec<String>> {
        let kernels: Vec<_> = parse(PTX).into_iter().map(|found| (found.name.clone(), found)).collect();
        findings(&kernels, &[(name, asked_for)])
    }

    #[test]
    fn a_contracted_multiply_add_is_found() {
        assert_eq!(check("_Z6soundv", 0).unwrap(), Vec::<String>::new());
        let findings = check("_Z5fusedv", 0).unwrap();
        assert!(findings.len() == 1 && findings[0].contains("1 contracted multiply-adds"), "{findings:?}");
        assert!(check("_Z5fusedv", 1).unwrap().is_empty(), "one that the source asks for is none");
    }

    #[test]
    fn a_multiplication_that_may_yet_be_contracted_is_found() {
        let findings = check("_Z7fusiblev", 0).unwrap();
        assert!(findings.len() == 1 && findings[0].contains("without a rounding"), "{findings:?}");
    }

    #[test]
    fn a_kernel_that_is_absent_or_empty_passes_no_check() {
        assert!(check("_Z6absentv", 0).unwrap_err().to_string().contains("_Z6absentv"));
        assert_eq!(check("_Z5emptyv", 0).unwrap().len(), 1);
    }
}
