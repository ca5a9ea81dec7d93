//! The low-rank path's own kernels on the linear layers of a Llama 70B: S, T, and the gradients of A and B. Nobody
//! fuses them, so that they are judged against the copy bandwidth.

use crate::bench::{Bench, Result, text};
use lab::low_rank::{Buffers, LowRank, LowRankPart};
use lab::operation::Operation;
use qlora_kernels::Result as CudaResult;
use qlora_kernels::device::{Buffer, Stream};
use qlora_kernels::ops::linear_backward::Backward;
use qlora_kernels::ops::lora_gradients::{ForwardInputs, lora_gradients, workspace_bytes};
use qlora_kernels::ops::{lora_down, lora_dy_b};

const R: usize = 16;
const GROUPS: [(&str, &[usize], usize); 4] = [
    ("qkv", &[8192, 1024, 1024], 8192),
    ("o", &[8192], 8192),
    ("gate-up", &[28672, 28672], 8192),
    ("down", &[8192], 28672),
];
const TOKENS: [usize; 2] = [1024, 4096];
const QUICK_TOKENS: [usize; 1] = [1024];
/// Tokens of the check, whose reference is naive; longer inputs are cut into the same chunks of 256.
const CHECKED_TOKENS: usize = 600;

#[derive(Clone, Copy, Debug)]
enum Kind {
    S,
    T,
    Gradients,
}

pub fn run(bench: &mut Bench<'_>) {
    let tokens: &[usize] = if bench.options.quick { &QUICK_TOKENS } else { &TOKENS };
    for (group, widths, k) in GROUPS {
        for &m in tokens {
            for dropout in [0.0, 0.1] {
                let note = if dropout > 0.0 { ", dropout" } else { "" };
                let name = format!("LoRA gradients {group} M {m}{note}");
                if bench.wanted(&name)
                    && let Err(error) = measure(bench, &low_rank(m, k, widths, dropout), (group, m, note))
                {
                    bench.failed(&name, &error);
                }
            }
        }
    }
}

fn low_rank(m: usize, k: usize, widths: &[usize], dropout: f32) -> LowRank {
    let parts = widths.iter().map(|&n| LowRankPart { n, r: R, pad: 0 }).collect();
    LowRank { m, k, pad_x: 0, parts, adapters: 0, dropout, exact: false, given_t: true, seed: 70 }
}

fn measure(bench: &mut Bench<'_>, timed: &LowRank, (group, m, note): (&str, usize, &str)) -> Result<()> {
    let checked = LowRank { m: CHECKED_TOKENS, ..timed.clone() };
    let inputs = checked.inputs();
    let mut buffers = checked.upload(&bench.device, &inputs).map_err(text)?;
    bench.verify(&checked, &inputs, &mut buffers)?;
    drop((inputs, buffers));
    let inputs = timed.inputs();
    let sum: usize = timed.parts.iter().map(|part| part.n).sum();
    let (k, columns, parts) = (timed.k, timed.columns(), timed.parts.len());
    let pairs = R * (parts * k + sum);
    let shape = format!("{group} {sum}×{k}, M {m}{note}");
    // bf16: 2 bytes; the f32 gradients are read and written.
    let kinds = [
        (Kind::S, "S = X·Aᵀ", 2 * (m * k + parts * R * k + m * columns)),
        (Kind::T, "T = dY·B", 2 * (m * sum + R * sum + m * columns)),
        (Kind::Gradients, "LoRA gradients", 2 * m * (k + sum + 2 * columns) + 8 * pairs),
    ];
    for (kind, name, bytes) in kinds {
        let held = 2 * sum * k + 2 * m * (k + 2 * sum) + 16 * pairs;
        let sets = bench.sets(bytes as f64, held as f64);
        let mut buffers = (0..sets)
            .map(|_| Ok((timed.upload(&bench.device, &inputs)?, bench.device.upload(&[0u8])?)))
            .collect::<CudaResult<Vec<(Buffers, Buffer<u8>)>>>()
            .map_err(text)?;
        for (buffers, workspace) in &mut buffers {
            // S and T are there for the gradients, and the workspace that these say.
            timed.launch(buffers, bench.timer.stream()).map_err(text)?;
            let bytes = gradients_workspace(timed, buffers).map_err(text)?;
            *workspace = bench.device.upload(&vec![0u8; bytes]).map_err(text)?;
        }
        bench.timer.synchronize().map_err(text)?;
        let seconds =
            bench.time_launches(&format!("{name} {shape}"), &mut buffers, |(buffers, workspace), stream| {
                launch(timed, kind, buffers, workspace, stream)
            })?;
        bench.memory_bound(name, &shape, bytes as f64, seconds);
    }
    Ok(())
}

fn gradients_workspace(low_rank: &LowRank, buffers: &mut Buffers) -> CudaResult<usize> {
    low_rank.with(buffers, |backward, segments, input, _, gradients, (s, t)| {
        let backward = Backward { t: Some(t.view().into()), ..*backward };
        let inputs = ForwardInputs { x: input.x, ldx: input.ldx, s: s.view().into() };
        workspace_bytes(&backward, segments, &inputs, gradients)
    })
}

fn launch(
    low_rank: &LowRank,
    kind: Kind,
    buffers: &mut Buffers,
    workspace: &mut Buffer<u8>,
    stream: Stream,
) -> CudaResult<()> {
    low_rank.with(buffers, |backward, segments, input, forward, gradients, (s, t)| match kind {
        Kind::S => lora_down(input, forward, s.view_mut(), stream),
        Kind::T => lora_dy_b(backward, segments, t.view_mut(), stream),
        Kind::Gradients => {
            let backward = Backward { t: Some(t.view().into()), ..*backward };
            let inputs = ForwardInputs { x: input.x, ldx: input.ldx, s: s.view().into() };
            lora_gradients(&backward, segments, &inputs, gradients, workspace.view_mut(), stream)
        }
    })
}
