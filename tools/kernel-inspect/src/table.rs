//! The table of kernels, and what the hot ones must not have.

use super::names::readable;
use super::resources::Resources;
use super::sass::{Code, Counts};
use anyhow::{Context, Result, ensure};
use tools_support::cuda::ARCHS;

/// A kernel that may neither spill nor use local memory.
pub struct Hot {
    pub name: &'static str,
    /// Whether its operands reach shared memory by asynchronous copies.
    pub copies: bool,
    /// Instructions of the main loop beside each matrix instruction, at most, by architecture: about a tenth above what
    /// nvcc 13.0 makes. None: not a tensor-core kernel.
    pub others_per_hmma: Option<[f64; 3]>,
}

const fn tensor_core(name: &'static str, copies: bool, others_per_hmma: [f64; 3]) -> Hot {
    Hot { name, copies, others_per_hmma: Some(others_per_hmma) }
}

const fn memory_bound(name: &'static str) -> Hot {
    Hot { name, copies: false, others_per_hmma: None }
}

pub const HOT: [Hot; 66] = [
    tensor_core("linear_forward<Config<128, 8, 3, false>>", true, [9.3, 10.4, 7.6]),
    tensor_core("linear_forward<Config<64, 4, 4, false>>", true, [16.8, 17.7, 11.0]),
    tensor_core("linear_forward<Config<128, 8, 2, true>>", true, [6.1, 7.2, 5.4]),
    tensor_core("linear_forward<Config<64, 4, 3, true>>", true, [9.4, 10.8, 8.9]),
    tensor_core("linear_dx<Config<128, 8, 3, false, true>>", true, [4.3, 4.3, 4.3]),
    tensor_core("linear_dx<Config<64, 4, 4, false, true>>", true, [8.3, 8.3, 8.2]),
    tensor_core("linear_dx<Config<64, 4, 4, false, false>>", true, [8.3, 8.3, 8.1]),
    tensor_core("linear_dx<Config<128, 8, 2, true, true>>", true, [2.1, 2.0, 2.1]),
    tensor_core("linear_dx<Config<64, 4, 3, true, true>>", true, [3.8, 3.8, 3.9]),
    tensor_core("linear_dx<Config<64, 4, 3, true, false>>", true, [3.8, 3.8, 3.9]),
    // Operands go straight from global memory into registers: each is read once.
    tensor_core("linear_small_m<4, false>", false, [38.9, 39.5, 42.7]),
    tensor_core("linear_small_m<1, false>", false, [43.9, 44.4, 39.7]),
    tensor_core("linear_small_m<4, true>", false, [10.4, 10.4, 9.7]),
    tensor_core("linear_small_m<1, true>", false, [13.2, 13.2, 11.4]),
    tensor_core("lora_down", false, [9.7, 9.6, 9.1]),
    // Long sums of few columns: what is beside the matrix instructions is copying, and drawing the mask.
    tensor_core("lora_down_masked", false, [28.8, 29.1, 26.3]),
    tensor_core("lora_gradients<1, false>", true, [54.6, 58.7, 58.2]),
    tensor_core("lora_gradients<1, true>", true, [130.5, 134.2, 138.6]),
    tensor_core("lora_gradients<2, false>", true, [29.9, 32.3, 34.7]),
    tensor_core("lora_gradients<2, true>", true, [66.6, 70.8, 74.2]),
    tensor_core("lora_gradients<4, false>", true, [19.2, 20.9, 24.7]),
    tensor_core("lora_gradients<4, true>", true, [37.6, 39.5, 43.7]),
    tensor_core("lora_dy_b<1, 2, false>", false, [47.6, 47.9, 31.8]),
    tensor_core("lora_dy_b<1, 2, true>", false, [30.7, 31.8, 22.8]),
    tensor_core("lora_dy_b<2, 8, true>", false, [9.7, 8.2, 7.5]),
    memory_bound("add_chunks<1>"),
    memory_bound("add_chunks<2>"),
    memory_bound("add_chunks<4>"),
    memory_bound("dequantize<__nv_bfloat16>"),
    memory_bound("dequantize<float>"),
    memory_bound("quantize_blocks<__nv_bfloat16>"),
    memory_bound("quantize_blocks<float>"),
    memory_bound("quantize_absmax"),
    memory_bound("adamw_update"),
    memory_bound("gradient_partials"),
    tensor_core("attention<128>", true, [9.8, 10.0, 10.3]),
    tensor_core("attention<64>", true, [18.5, 18.8, 14.2]),
    tensor_core("attention_backward_keys<128>", true, [10.2, 10.9, 5.7]),
    tensor_core("attention_backward_keys<64>", true, [19.9, 21.1, 10.8]),
    tensor_core("attention_backward_queries<128>", true, [7.9, 8.2, 7.0]),
    tensor_core("attention_backward_queries<64>", true, [15.0, 15.5, 9.1]),
    memory_bound("attention_delta<128>"),
    memory_bound("attention_delta<64>"),
    // Few queries: what is beside the matrix instructions is the tile's place, copies, masks and the softmax.
    tensor_core("attention_cache<128>", true, [11.5, 11.0, 8.8]),
    tensor_core("attention_cache<64>", true, [11.5, 11.0, 8.8]),
    memory_bound("attention_cache_append"),
    memory_bound("attention_cache_combine<128>"),
    memory_bound("attention_cache_combine<64>"),
    // Straight from global memory into registers; where rows do not begin at multiples of 16 bytes, element by element.
    tensor_core("logits_of_tokens<true>", false, [24.2, 23.1, 17.3]),
    tensor_core("logits_of_tokens<false>", false, [106.1, 104.7, 77.8]),
    tensor_core("cross_entropy_logits<true, true>", true, [1.1, 1.0, 1.2]),
    tensor_core("cross_entropy_logits<true, false>", true, [1.1, 1.0, 1.2]),
    // Rows that do not begin at multiples of 16 bytes are copied element by element.
    tensor_core("cross_entropy_logits<false, true>", true, [2.2, 2.1, 1.9]),
    tensor_core("cross_entropy_logits<false, false>", true, [2.2, 2.1, 1.9]),
    memory_bound("softmax_rows"),
    memory_bound("copy_rows<false, 8>"),
    memory_bound("copy_rows<true, 8>"),
    memory_bound("clear_rows<8>"),
    memory_bound("rms_norm<8>"),
    memory_bound("rms_norm_backward<8>"),
    memory_bound("head_norm<8, false>"),
    memory_bound("head_norm<8, true>"),
    memory_bound("rope<8>"),
    memory_bound("swiglu<8, false>"),
    memory_bound("swiglu<8, true>"),
    memory_bound("embedding<8>"),
];

/// One kernel of one architecture.
#[derive(Debug)]
pub struct Row {
    pub name: String,
    pub arch: String,
    pub registers: u32,
    /// Bytes a thread: spilled registers and local arrays.
    pub spilled: u32,
    pub shared: u32,
    /// Bytes of dynamic shared memory of the largest launch, if one is known.
    pub dynamic: Option<u64>,
    pub whole: Counts,
    pub main_loop: Option<Counts>,
}

impl Row {
    /// Static shared memory without the system's.
    pub fn shared_of_own(&self) -> u32 {
        let is_later = self.arch.trim_start_matches("sm_").parse::<u32>().is_ok_and(|arch| arch >= 90);
        self.shared.saturating_sub(if is_later { 1024 } else { 0 })
    }
}

/// Every kernel on every architecture, kernel by kernel.
pub fn rows(code: &[Code], resources: &[Resources]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for code in code {
        let found = resources.iter().find(|found| found.arch == code.arch && found.name == code.name);
        let found =
            found.with_context(|| format!("cuobjdump gives no resources of {} for {}", code.name, code.arch))?;
        rows.push(Row {
            name: readable(&code.name),
            arch: code.arch.clone(),
            registers: found.registers,
            spilled: found.local,
            shared: found.shared,
            dynamic: None,
            whole: code.counts(),
            main_loop: code.main_loop(),
        });
    }
    ensure!(!rows.is_empty(), "cuobjdump lists no kernel");
    let arch_index = |row: &Row| ARCHS.iter().position(|arch| *arch == row.arch);
    rows.sort_by(|a, b| (&a.name, arch_index(a)).cmp(&(&b.name, arch_index(b))));
    Ok(rows)
}

pub fn shown(rows: &[Row]) -> String {
    let mut lines = vec![
        "local: loads and stores of local memory. loop: the K loop of a tensor-core kernel; beside: its instructions that are not".into(),
        "HMMA, per HMMA. shared: static bytes (1,024 are the system's from sm_90 on); dynamic: what the largest launch of the suite asks for.".into(),
        format!(
            "{:<42} {:<6} {:>4} {:>7} {:>6} {:>7} {:>5} {:>6} {:>5} {:>6} {:>9} {:>9} {:>6}",
            "kernel", "arch", "regs", "spilled", "shared", "dynamic", "HMMA", "LDGSTS", "local", "instr", "loop HMMA", "loop instr", "beside"
        ),
    ];
    for row in rows {
        let Counts { instructions, hmma, ldgsts, local } = row.whole;
        let (loop_hmma, loop_instructions, beside) = match &row.main_loop {
            Some(counts) => (
                counts.hmma.to_string(),
                counts.instructions.to_string(),
                counts.others_per_hmma().map(|others| format!("{others:.2}")).unwrap_or_default(),
            ),
            None => Default::default(),
        };
        lines.push(format!(
            "{:<42} {:<6} {:>4} {:>7} {:>6} {:>7} {hmma:>5} {ldgsts:>6} {local:>5} {instructions:>6} {loop_hmma:>9} \
             {loop_instructions:>10} {beside:>6}",
            row.name,
            row.arch,
            row.registers,
            row.spilled,
            row.shared,
            row.dynamic.map_or("?".into(), |bytes| bytes.to_string())
        ));
    }
    lines.join("\n")
}

/// What is wrong, one line each.
pub fn findings(rows: &[Row], hot: &[Hot]) -> Vec<String> {
    let mut findings = Vec::new();
    for row in rows.iter().filter(|row| row.whole.hmma > 0) {
        if !hot.iter().any(|hot| hot.name == row.name && hot.others_per_hmma.is_some()) {
            findings.push(format!("{} on {}: a tensor-core kernel without a bound in the table", row.name, row.arch));
        }
    }
    for hot in hot {
        for (index, arch) in ARCHS.iter().enumerate() {
            let bound = hot.others_per_hmma.map(|bounds| bounds[index]);
            let mut matching = rows.iter().filter(|row| row.name == hot.name && row.arch == *arch).peekable();
            if matching.peek().is_none() {
                findings.push(format!("{} on {arch}: not in the library; was it renamed?", hot.name));
            }
            for row in matching {
                findings.extend(
                    row_findings(row, hot, bound).into_iter().map(|text| format!("{} on {arch}: {text}", hot.name)),
                );
            }
        }
    }
    findings
}

fn row_findings(row: &Row, hot: &Hot, bound: Option<f64>) -> Vec<String> {
    let mut findings = Vec::new();
    if row.spilled > 0 || row.whole.local > 0 {
        findings.push(format!(
            "{} bytes spilled, {} accesses to local memory (expected none)",
            row.spilled, row.whole.local
        ));
    }
    if hot.copies && row.whole.ldgsts == 0 {
        findings.push("no asynchronous copy (LDGSTS)".to_owned());
    }
    if let Some(bound) = bound {
        match row.main_loop.and_then(|counts| counts.others_per_hmma()) {
            None => findings.push("no loop with a matrix instruction (HMMA)".to_owned()),
            Some(others) if others > bound => {
                findings.push(format!("{others:.2} instructions beside each HMMA in the main loop (at most {bound})"));
            }
            Some(_) => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::launches;
    use super::*;

    const LISTED: [Hot; 1] = [tensor_core("k", true, [3.0, 3.0, 3.0])];

    fn row(arch: &str) -> Row {
        let whole = Counts { instructions: 20, hmma: 4, ldgsts: 2, local: 0 };
        let main_loop = Some(Counts { instructions: 16, hmma: 4, ldgsts: 2, local: 0 });
        Row {
            name: "k".into(),
            arch: arch.into(),
            registers: 9,
            spilled: 0,
            shared: 0,
            dynamic: Some(0),
            whole,
            main_loop,
        }
    }

    fn findings_of(change: impl Fn(&mut Row)) -> Vec<String> {
        let mut rows: Vec<Row> = ARCHS.iter().map(|arch| row(arch)).collect();
        change(&mut rows[1]);
        findings(&rows, &LISTED)
    }

    #[test]
    fn shared_memory_beyond_the_smaller_cards_and_kernels_that_are_never_launched_are_found() {
        let of = |shared, dynamic| launches::findings(&[Row { shared, dynamic, ..row("sm_90") }]).join("");
        assert_eq!(of(1024, Some(launches::LIMIT)), "");
        assert!(of(1024, Some(launches::LIMIT + 1)).contains("101377 bytes"));
        assert!(of(1040, Some(launches::LIMIT)).contains("101376 bytes"));
        assert!(of(1024, None).contains("no launch"));
    }

    #[test]
    fn a_kernel_within_its_bounds_has_no_findings() {
        assert_eq!(findings_of(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn whatever_a_hot_kernel_must_not_have_is_found() {
        type Change = fn(&mut Row);
        let cases: [(Change, &str); 7] = [
            (|row| row.spilled = 8, "8 bytes spilled"),
            (|row| row.whole.local = 3, "3 accesses to local memory"),
            (|row| row.whole.ldgsts = 0, "LDGSTS"),
            (|row| row.main_loop = None, "HMMA"),
            (
                |row| row.main_loop = Some(Counts { instructions: 17, hmma: 4, ldgsts: 2, local: 0 }),
                "3.25 instructions",
            ),
            (|row| row.arch = "sm_75".into(), "not in the library"),
            (|row| row.name = "other".into(), "without a bound"),
        ];
        for (change, expected) in cases {
            let findings = findings_of(change);
            assert!(findings.iter().any(|finding| finding.contains(expected)), "{expected}: {findings:?}");
        }
    }
}
