//! The linear layers of a Llama 70B, each group as one call, forward and dX, against dequantize + cuBLASLt, plain
//! cuBLASLt, and the same kernel on bf16 weights.

use crate::bench::{Bench, Result, shown, text};
use half::bf16;
use lab::dispatched::Dispatched;
use lab::dispatched_dx::DispatchedDx;
use lab::linear::{self, Host, HostPart, Linear, Part, Values};
use lab::linear_dx::{self as dx, LinearDx};
use lab::operation::Operation;
use qlora_kernels::ops::cublaslt::CublasLt;
use qlora_kernels::ops::dispatch::Dispatch;
use qlora_kernels::ops::linear::Path;
use records::format::Row;

struct Group {
    name: &'static str,
    /// Output features of every segment.
    n: &'static [usize],
    k: usize,
    /// Also in the quick mode.
    quick: bool,
}

const GROUPS: [Group; 6] = [
    Group { name: "qkv", n: &[8192, 1024, 1024], k: 8192, quick: true },
    Group { name: "o", n: &[8192], k: 8192, quick: true },
    Group { name: "gate-up", n: &[28672, 28672], k: 8192, quick: true },
    Group { name: "down", n: &[8192], k: 28672, quick: true },
    Group { name: "k", n: &[1024], k: 8192, quick: false },
    Group { name: "gate", n: &[28672], k: 8192, quick: true },
];
const TOKENS: [usize; 9] = [1, 4, 16, 128, 512, 1024, 2048, 4096, 8192];
const QUICK_TOKENS: [usize; 6] = [1, 16, 512, 1024, 2048, 4096];
const TOKENS_OF_DX: [usize; 5] = [512, 1024, 2048, 4096, 8192];
const QUICK_TOKENS_OF_DX: [usize; 3] = [1024, 2048, 4096];
const R: usize = 16;

fn linear(m: usize, k: usize, n: &[usize], r: usize, dense: bool) -> Linear {
    let parts = n.iter().map(|&n| Part { n, r, bias: false, pad: 0 }).collect();
    Linear { dense, values: Values::RandomCodes, given_s: true, seed: 70, ..Linear::new(m, k, parts) }
}

/// The weights of all segments in one of bf16, and one LoRA pair.
fn merged(parts: &[HostPart], k: usize) -> HostPart {
    let total: usize = parts.iter().map(|part| part.weight.len() / k).sum();
    HostPart {
        weight: parts.iter().flat_map(|part| part.weight.iter().copied()).collect(),
        nf4: None,
        a: parts[0].a.clone(),
        b: parts.iter().flat_map(|part| part.b.iter().copied()).collect(),
        bias: vec![bf16::ZERO; total],
        scales: parts[0].scales.clone(),
    }
}

/// A pass through a linear layer, fused and by a row of the dispatch table.
trait Pass {
    const NAME: &str;
    type Fused: Operation;
    type Dispatched<'a>: Operation<Inputs = <Self::Fused as Operation>::Inputs>;

    fn fused(linear: Linear) -> Self::Fused;
    fn dispatched(linear: Linear, dispatch: Dispatch<'_>) -> Self::Dispatched<'_>;
    fn path(fused: &Self::Fused, buffers: &mut <Self::Fused as Operation>::Buffers) -> qlora_kernels::Result<Path>;
    /// The inputs of [`merged`] weights.
    fn merged(
        inputs: &<Self::Fused as Operation>::Inputs,
        group: &Group,
        m: usize,
    ) -> <Self::Fused as Operation>::Inputs;
}

struct Forward;

impl Pass for Forward {
    const NAME: &str = "forward";
    type Fused = Linear;
    type Dispatched<'a> = Dispatched<'a>;

    fn fused(linear: Linear) -> Linear {
        linear
    }

    fn dispatched(linear: Linear, dispatch: Dispatch<'_>) -> Dispatched<'_> {
        // A trainer has its outputs so, and a group is one product.
        Dispatched { linear, dispatch, side_by_side: true }
    }

    fn path(fused: &Linear, buffers: &mut linear::Buffers) -> qlora_kernels::Result<Path> {
        fused.path(buffers)
    }

    fn merged(inputs: &Host, group: &Group, _: usize) -> Host {
        Host { x: inputs.x.clone(), index: Vec::new(), parts: vec![merged(&inputs.parts, group.k)] }
    }
}

struct Dx;

impl Pass for Dx {
    const NAME: &str = "dX";
    type Fused = LinearDx;
    type Dispatched<'a> = DispatchedDx<'a>;

    fn fused(linear: Linear) -> LinearDx {
        LinearDx { linear, accumulate: false, dropout: None }
    }

    fn dispatched(linear: Linear, dispatch: Dispatch<'_>) -> DispatchedDx<'_> {
        DispatchedDx { dx: Self::fused(linear), dispatch }
    }

    fn path(fused: &LinearDx, buffers: &mut dx::Buffers) -> qlora_kernels::Result<Path> {
        fused.path(buffers)
    }

    fn merged(inputs: &dx::Host, group: &Group, m: usize) -> dx::Host {
        let total = group.n.iter().sum::<usize>();
        let mut dy = Vec::with_capacity(m * total);
        for token in 0..m {
            group.n.iter().zip(&inputs.dy).for_each(|(&n, of)| dy.extend_from_slice(&of[token * n..][..n]));
        }
        let parts = vec![merged(&inputs.parts, group.k)];
        dx::Host { dx: inputs.dx.clone(), index: Vec::new(), parts, dy: vec![dy], step_on_device: None }
    }
}

pub fn run(bench: &mut Bench<'_>) {
    let library = match CublasLt::open() {
        Ok(library) => {
            println!("cuBLASLt {}", library.version());
            bench.record.cublaslt = Some(library.version());
            Some(library)
        }
        Err(error) => {
            println!("NO BASELINE: {error}");
            None
        }
    };
    let quick = bench.options.quick;
    for group in GROUPS.iter().filter(|group| group.quick || !quick) {
        pass::<Forward>(bench, group, if quick { &QUICK_TOKENS } else { &TOKENS }, library.as_ref());
    }
    for group in GROUPS.iter().filter(|group| group.quick || !quick) {
        pass::<Dx>(bench, group, if quick { &QUICK_TOKENS_OF_DX } else { &TOKENS_OF_DX }, library.as_ref());
    }
}

fn pass<P: Pass>(bench: &mut Bench<'_>, group: &Group, tokens: &[usize], library: Option<&CublasLt>) {
    let wanted: Vec<usize> = tokens.iter().copied().filter(|&m| bench.wanted(&name::<P>(group, m))).collect();
    if wanted.is_empty() {
        return;
    }
    if let Err(error) = measure::<P>(bench, group, &wanted, library) {
        bench.failed(&format!("{} {}", P::NAME, shape(group)), &error);
    }
}

fn shape(group: &Group) -> String {
    format!("{} {}×{}", group.name, group.n.iter().sum::<usize>(), group.k)
}

fn name<P: Pass>(group: &Group, m: usize) -> String {
    format!("{} {} M {m}", P::NAME, shape(group))
}

/// One operation at every M, on the same buffers: seconds, in the order of `tokens`.
fn times<P: Pass, O: Operation>(
    bench: &mut Bench<'_>,
    group: &Group,
    variant: &str,
    inputs: &O::Inputs,
    tokens: &[usize],
    buffers: &mut [O::Buffers],
    of: impl Fn(usize) -> O,
) -> Vec<Option<f64>> {
    let mut all = Vec::new();
    for &m in tokens {
        let (operation, name) = (of(m), format!("{}, {variant}", name::<P>(group, m)));
        let measured = match bench.verify(&operation, inputs, &mut buffers[0]) {
            Ok(()) => bench.time(&name, &operation, buffers),
            Err(error) => Err(error),
        };
        if let Err(error) = &measured {
            bench.failed(&name, error);
        }
        all.push(measured.ok());
    }
    all
}

fn measure<P: Pass>(bench: &mut Bench<'_>, group: &Group, tokens: &[usize], library: Option<&CublasLt>) -> Result<()> {
    let (k, n, total) = (group.k, group.n, [group.n.iter().sum::<usize>()]);
    let (least, most) = (tokens[0], tokens[tokens.len() - 1]);
    let nf4 = |m, r| P::fused(linear(m, k, n, r, false));
    let dense = |m, r| P::fused(linear(m, k, &total, r, true));
    // Every M uses the buffers of the largest; the sets are as many as the smallest needs.
    let sets = |bench: &Bench<'_>, of: &dyn Fn(usize, usize) -> P::Fused| {
        bench.sets(of(least, R).bytes(), of(most, R).bytes())
    };
    let host = nf4(most, R).inputs();
    let mut library_times = None;
    let (fused, plain, path) = {
        let mut buffers = upload(bench, sets(bench, &nf4), &nf4(most, R), &host)?;
        let mut path = Vec::new();
        for &m in tokens {
            path.push(format!("{:?}", P::path(&nf4(m, R), &mut buffers[0]).map_err(text)?));
        }
        let fused = times::<P, _>(bench, group, "NF4 + LoRA", &host, tokens, &mut buffers, |m| nf4(m, R));
        let plain = times::<P, _>(bench, group, "NF4", &host, tokens, &mut buffers, |m| nf4(m, 0));
        (fused, plain, path)
    };
    if let Some(library) = library {
        let of = |m| P::dispatched(linear(m, k, n, R, false), Dispatch::DequantizeCublasLt(library));
        let mut buffers = upload(bench, 1, &of(most), &host)?;
        let times = times::<P, _>(bench, group, "dequantize + cuBLASLt", &host, tokens, &mut buffers, of);
        library_times = Some(times);
    }
    let host = P::merged(&host, group, most);
    let mut buffers = upload(bench, sets(bench, &dense), &dense(most, R), &host)?;
    let dense_times = times::<P, _>(bench, group, "bf16 weights + LoRA", &host, tokens, &mut buffers, |m| dense(m, R));
    drop(buffers);
    let mut plain_library = None;
    if let Some(library) = library {
        let of = |m| P::dispatched(linear(m, k, &total, 0, true), Dispatch::DequantizeCublasLt(library));
        let mut buffers = upload(bench, sets(bench, &dense), &of(most), &host)?;
        plain_library = Some(times::<P, _>(bench, group, "cuBLASLt, bf16, no LoRA", &host, tokens, &mut buffers, of));
    }
    for (i, &m) in tokens.iter().enumerate() {
        let Some(seconds) = fused[i] else { continue };
        let operation = nf4(m, R);
        let over = |times: &Option<Vec<Option<f64>>>| Some(times.as_ref()?[i]? / seconds);
        let (flops, rate) = (operation.flops() / seconds, operation.bytes() / seconds);
        let row = Row {
            operation: operation.name(),
            shape: shape(group),
            m: Some(m),
            path: Some(path[i].clone()),
            seconds,
            tflops: Some(flops / 1e12),
            gb_per_s: Some(rate / 1e9),
            share_of_copy: Some(rate / bench.copy),
            over_dequantize_cublaslt: over(&library_times),
            over_cublaslt: over(&plain_library),
            over_bf16_weights: dense_times[i].map(|dense| dense / seconds),
            lora_percent: plain[i].map(|plain| 100.0 * (seconds / plain - 1.0)),
            ..Row::default()
        };
        println!("{}", line(&row, &name::<P>(group, m)));
        bench.row(row);
    }
    Ok(())
}

fn line(row: &Row, name: &str) -> String {
    let ratio = |value: Option<f64>| value.map_or("?".into(), |value| format!("{value:.2}×"));
    let number = |value: Option<f64>| value.map_or("?".into(), |value| format!("{value:.0}"));
    format!(
        "{} dequantize + cuBLASLt, {} cuBLASLt without LoRA, {} bf16 weights, {}% of copy | {} TFLOP/s, {} GB/s, {}, LoRA {} | {name}, {}",
        ratio(row.over_dequantize_cublaslt),
        ratio(row.over_cublaslt),
        ratio(row.over_bf16_weights),
        number(row.share_of_copy.map(|share| 100.0 * share)),
        number(row.tflops),
        number(row.gb_per_s),
        shown(row.seconds),
        row.lora_percent.map_or("?".into(), |lora| format!("{lora:+.1}%")),
        row.path.as_deref().unwrap_or("?"),
    )
}

fn upload<O: Operation>(bench: &Bench<'_>, sets: usize, operation: &O, inputs: &O::Inputs) -> Result<Vec<O::Buffers>> {
    (0..sets).map(|_| operation.upload(&bench.device, inputs).map_err(text)).collect()
}
