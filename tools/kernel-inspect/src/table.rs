//! The table of kernels, and what the hot ones must not have.

use anyhow::{Context, Result, ensure};
use kernel_inspect::names::readable;
use kernel_inspect::resources::Resources;
use kernel_inspect::sass::{Code, Counts};
use tools_support::cuda::ARCHS;

/// A kernel that may neither spill nor use local memory, but for what is known.
pub struct Hot {
    pub name: &'static str,
    /// Its operands reach shared memory by asynchronous copies.
    pub copies: bool,
    /// Its main loop has to hold matrix instructions. Goals for its speed are in `tools/predict`.
    pub is_tensor_core: bool,
    /// Bytes that are known to spill, and have yet to be saved.
    pub known_spills: u32,
}

const fn tensor_core(name: &'static str, copies: bool) -> Hot {
    Hot { name, copies, is_tensor_core: true, known_spills: 0 }
}

/// Heads of 256 take all registers.
const fn spilling(name: &'static str, known_spills: u32) -> Hot {
    Hot { known_spills, ..tensor_core(name, true) }
}

const fn memory_bound(name: &'static str) -> Hot {
    Hot { name, copies: false, is_tensor_core: false, known_spills: 0 }
}

pub const HOT: [Hot; 122] = [
    tensor_core("linear_forward<Config<128, 8, 3, false, true>>", true),
    tensor_core("linear_forward<Config<64, 4, 3, false, true>>", true),
    tensor_core("linear_forward<Config<64, 4, 3, false, false>>", true),
    tensor_core("linear_forward<Config<128, 8, 2, true, true>>", true),
    tensor_core("linear_forward<Config<64, 4, 3, true, true>>", true),
    tensor_core("linear_forward<Config<64, 4, 3, true, false>>", true),
    tensor_core("linear_dx<Config<128, 8, 3, false>>", true),
    tensor_core("linear_dx<Config<64, 4, 3, false>>", true),
    tensor_core("linear_dx<Config<128, 8, 2, true>>", true),
    tensor_core("linear_dx<Config<64, 4, 3, true>>", true),
    // Operands go straight from global memory into registers: each is read once.
    tensor_core("linear_small_m<4, false>", false),
    tensor_core("linear_small_m<1, false>", false),
    tensor_core("linear_small_m<4, true>", false),
    tensor_core("linear_small_m<1, true>", false),
    tensor_core("lora_down<2>", false),
    tensor_core("lora_down<4>", false),
    tensor_core("lora_down<6>", false),
    tensor_core("lora_down<8>", false),
    // Long sums of few columns: what is beside the matrix instructions is copying, and drawing the mask.
    tensor_core("lora_down_masked", false),
    tensor_core("lora_gradients<1, false>", true),
    tensor_core("lora_gradients<1, true>", true),
    tensor_core("lora_gradients<2, false>", true),
    tensor_core("lora_gradients<2, true>", true),
    tensor_core("lora_gradients<4, false>", true),
    tensor_core("lora_gradients<4, true>", true),
    tensor_core("lora_dy_b<1, 2, false>", false),
    tensor_core("lora_dy_b<1, 2, true>", false),
    tensor_core("lora_dy_b<2, 8, true>", false),
    memory_bound("add_chunks<1>"),
    memory_bound("add_chunks<2>"),
    memory_bound("add_chunks<4>"),
    memory_bound("dequantize<__nv_bfloat16>"),
    memory_bound("dequantize<float>"),
    memory_bound("dequantize_rows"),
    memory_bound("copy_columns"),
    memory_bound("quantize_blocks<__nv_bfloat16>"),
    memory_bound("quantize_blocks<float>"),
    memory_bound("quantize_absmax"),
    memory_bound("adamw_update"),
    memory_bound("gradient_partials"),
    // The last parameter: with a soft cap.
    spilling("attention<256, false>", 48),
    spilling("attention<256, true>", 48),
    tensor_core("attention<128, false>", true),
    tensor_core("attention<128, true>", true),
    tensor_core("attention<96, false>", true),
    tensor_core("attention<96, true>", true),
    tensor_core("attention<64, false>", true),
    tensor_core("attention<64, true>", true),
    tensor_core("attention_backward_keys<256, false>", true),
    tensor_core("attention_backward_keys<256, true>", true),
    tensor_core("attention_backward_keys<128, false>", true),
    tensor_core("attention_backward_keys<128, true>", true),
    tensor_core("attention_backward_keys<96, false>", true),
    tensor_core("attention_backward_keys<96, true>", true),
    tensor_core("attention_backward_keys<64, false>", true),
    tensor_core("attention_backward_keys<64, true>", true),
    spilling("attention_backward_queries<256, false>", 8),
    spilling("attention_backward_queries<256, true>", 8),
    tensor_core("attention_backward_queries<128, false>", true),
    tensor_core("attention_backward_queries<128, true>", true),
    tensor_core("attention_backward_queries<96, false>", true),
    tensor_core("attention_backward_queries<96, true>", true),
    tensor_core("attention_backward_queries<64, false>", true),
    tensor_core("attention_backward_queries<64, true>", true),
    memory_bound("attention_backward_add<256>"),
    memory_bound("attention_backward_add<128>"),
    memory_bound("attention_backward_add<96>"),
    memory_bound("attention_backward_add<64>"),
    memory_bound("attention_delta<256>"),
    memory_bound("attention_delta<128>"),
    memory_bound("attention_delta<96>"),
    memory_bound("attention_delta<64>"),
    // Few queries: what is beside the matrix instructions is the tile's place, copies, masks and the softmax.
    tensor_core("attention_cache<256, false>", true),
    tensor_core("attention_cache<256, true>", true),
    tensor_core("attention_cache<128, false>", true),
    tensor_core("attention_cache<128, true>", true),
    tensor_core("attention_cache<96, false>", true),
    tensor_core("attention_cache<96, true>", true),
    tensor_core("attention_cache<64, false>", true),
    tensor_core("attention_cache<64, true>", true),
    memory_bound("attention_cache_append"),
    memory_bound("attention_cache_combine<256>"),
    memory_bound("attention_cache_combine<128>"),
    memory_bound("attention_cache_combine<96>"),
    memory_bound("attention_cache_combine<64>"),
    // Straight from global memory into registers; where rows do not begin at multiples of 16 bytes, element by element.
    tensor_core("logits_of_tokens<true>", false),
    tensor_core("logits_of_tokens<false>", false),
    tensor_core("cross_entropy_logits<true, true, false>", true),
    tensor_core("cross_entropy_logits<true, true, true>", true),
    tensor_core("cross_entropy_logits<true, false, false>", true),
    tensor_core("cross_entropy_logits<true, false, true>", true),
    // Rows that do not begin at multiples of 16 bytes are copied element by element.
    tensor_core("cross_entropy_logits<false, true, false>", true),
    tensor_core("cross_entropy_logits<false, true, true>", true),
    tensor_core("cross_entropy_logits<false, false, false>", true),
    tensor_core("cross_entropy_logits<false, false, true>", true),
    memory_bound("softmax_rows<false>"),
    memory_bound("softmax_rows<true>"),
    memory_bound("copy_rows<false, 8>"),
    memory_bound("copy_rows<true, 8>"),
    memory_bound("clear_rows<8>"),
    memory_bound("rms_norm<8>"),
    memory_bound("rms_norm_backward<8>"),
    // The last: without a rotation, behind the norm, before it.
    memory_bound("head_norm<8, false, 0>"),
    memory_bound("head_norm<8, false, 1>"),
    memory_bound("head_norm<8, false, 2>"),
    memory_bound("head_norm<8, true, 0>"),
    memory_bound("head_norm<8, true, 1>"),
    memory_bound("head_norm<8, true, 2>"),
    memory_bound("inverse_rms_of_parts<8>"),
    memory_bound("norm_gradient<8>"),
    memory_bound("magnitude_forward<8>"),
    memory_bound("magnitude_backward<8>"),
    memory_bound("add_token_sums"),
    memory_bound("row_squares_nf4<true>"),
    memory_bound("magnitude_norms"),
    memory_bound("rope<8>"),
    memory_bound("swiglu<8, false, 0>"),
    memory_bound("swiglu<8, true, 0>"),
    memory_bound("embedding<8>"),
    memory_bound("embedding_backward<8>"),
    memory_bound("replace_rows<8>"),
    memory_bound("pick_columns"),
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

/// Faults, one line each.
pub fn findings(rows: &[Row], hot: &[Hot]) -> Vec<String> {
    let mut findings = Vec::new();
    for row in rows.iter().filter(|row| row.whole.hmma > 0) {
        if !hot.iter().any(|hot| hot.name == row.name && hot.is_tensor_core) {
            findings.push(format!("{} on {}: a tensor-core kernel that the table does not list", row.name, row.arch));
        }
    }
    for hot in hot {
        for arch in ARCHS {
            let mut matching = rows.iter().filter(|row| row.name == hot.name && row.arch == arch).peekable();
            if matching.peek().is_none() {
                findings.push(format!("{} on {arch}: not in the library; was it renamed?", hot.name));
            }
            for row in matching {
                findings
                    .extend(row_findings(row, hot).into_iter().map(|text| format!("{} on {arch}: {text}", hot.name)));
            }
        }
    }
    findings
}

fn row_findings(row: &Row, hot: &Hot) -> Vec<String> {
    let mut findings = Vec::new();
    if row.spilled > hot.known_spills || row.whole.local > 0 && hot.known_spills == 0 {
        findings.push(format!(
            "{} bytes spilled, {} accesses to local memory (expected {})",
            row.spilled,
            row.whole.local,
            if hot.known_spills == 0 { "none".to_owned() } else { format!("at most {} bytes", hot.known_spills) }
        ));
    }
    if hot.copies && row.whole.ldgsts == 0 {
        findings.push("no asynchronous copy (LDGSTS)".to_owned());
    }
    if hot.is_tensor_core && row.main_loop.and_then(|counts| counts.others_per_hmma()).is_none() {
        findings.push("no loop with a matrix instruction (HMMA)".to_owned());
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::launches;
    use super::*;

    const LISTED: [Hot; 1] = [tensor_core("k", true)];

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
    fn a_kernel_as_the_table_wants_it_has_no_findings() {
        assert_eq!(findings_of(|_| {}), Vec::<String>::new());
    }

    #[test]
    fn whatever_a_hot_kernel_must_not_have_is_found() {
        type Change = fn(&mut Row);
        let cases: [(Change, &str); 6] = [
            (|row| row.spilled = 8, "8 bytes spilled"),
            (|row| row.whole.local = 3, "3 accesses to local memory"),
            (|row| row.whole.ldgsts = 0, "LDGSTS"),
            (|row| row.main_loop = None, "HMMA"),
            (|row| row.arch = "sm_75".into(), "not in the library"),
            (|row| row.name = "other".into(), "does not list"),
        ];
        for (change, expected) in cases {
            let findings = findings_of(change);
            assert!(findings.iter().any(|finding| finding.contains(expected)), "{expected}: {findings:?}");
        }
    }
}
