//! The linear layers of a Llama 70B, each group as one call, against dequantise + cuBLASLt, plain cuBLASLt, and the same kernel on bf16
//! weights.

use crate::dispatched::Dispatched;
use crate::gpu::{Bench, Result, shown, text};
use crate::linear_operation::{Host, HostPart, Linear, Part, Values};
use crate::operation::Operation;
use half::bf16;
use qlora_kernels::cuda::cublaslt::CublasLt;
use qlora_kernels::cuda::dispatch::Dispatch;
use serde_json::json;

struct Group {
    name: &'static str,
    /// Of every segment.
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
    Group { name: "gate", n: &[28672], k: 8192, quick: false },
];
const TOKENS: [usize; 9] = [1, 4, 16, 128, 512, 1024, 2048, 4096, 8192];
const QUICK_TOKENS: [usize; 6] = [1, 16, 512, 1024, 2048, 4096];
const R: usize = 16;

fn linear(m: usize, k: usize, n: &[usize], r: usize, dense: bool) -> Linear {
    Linear {
        m,
        k,
        pad_x: 0,
        block_size: 64,
        dense,
        transposed: true,
        double_quant: true,
        values: Values::RandomCodes,
        given_s: true,
        adapters: 0,
        parts: n.iter().map(|&n| Part { n, r, bias: false, pad: 0 }).collect(),
        seed: 70,
    }
}

/// The same weights in one bf16 segment, and one LoRA pair.
fn merged(host: &Host, k: usize) -> Host {
    let total: usize = host.parts.iter().map(|part| part.weight.len() / k).sum();
    let weight = host.parts.iter().flat_map(|part| part.weight.iter().copied()).collect();
    let b: Vec<bf16> = host.parts.iter().flat_map(|part| part.b.iter().copied()).collect();
    let part = HostPart {
        weight,
        nf4: None,
        a: host.parts[0].a.clone(),
        b,
        bias: vec![bf16::ZERO; total],
        scales: host.parts[0].scales.clone(),
    };
    Host { x: host.x.clone(), index: Vec::new(), parts: vec![part] }
}

pub fn run(bench: &mut Bench<'_>) {
    let library = match CublasLt::open() {
        Ok(library) => {
            println!("cuBLASLt {}", library.version());
            Some(library)
        }
        Err(error) => {
            println!("NO BASELINE: {error}");
            None
        }
    };
    let quick = bench.options.quick;
    let tokens: &[usize] = if quick { &QUICK_TOKENS } else { &TOKENS };
    for group in GROUPS.iter().filter(|group| group.quick || !quick) {
        let wanted: Vec<usize> = tokens.iter().copied().filter(|&m| bench.wanted(&name(group, m))).collect();
        if wanted.is_empty() {
            continue;
        }
        if let Err(error) = measure(bench, group, &wanted, library.as_ref()) {
            bench.failed(group.name, &error);
        }
    }
}

fn name(group: &Group, m: usize) -> String {
    format!("forward {} {}×{} M {m}", group.name, group.n.iter().sum::<usize>(), group.k)
}

/// One operation at every M, on the same buffers: seconds, in the order of `tokens`.
fn times<O: Operation>(
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
        let (operation, name) = (of(m), format!("{}, {variant}", name(group, m)));
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

fn measure(bench: &mut Bench<'_>, group: &Group, tokens: &[usize], library: Option<&CublasLt>) -> Result<()> {
    let (k, n, total) = (group.k, group.n, [group.n.iter().sum::<usize>()]);
    let (least, most) = (tokens[0], tokens[tokens.len() - 1]);
    let nf4 = |m, r| linear(m, k, n, r, false);
    let dense = |m, r| linear(m, k, &total, r, true);
    // Every M uses the buffers of the largest; the sets are as many as the smallest needs.
    let sets =
        |bench: &Bench<'_>, of: &dyn Fn(usize, usize) -> Linear| bench.sets(of(least, R).bytes(), of(most, R).bytes());
    let host = nf4(most, R).inputs();
    let mut library_times = None;
    let (fused, plain, path) = {
        let mut buffers = upload(bench, sets(bench, &nf4), &nf4(most, R), &host)?;
        let mut path = Vec::new();
        for &m in tokens {
            path.push(format!("{:?}", nf4(m, R).path(&mut buffers[0]).map_err(text)?));
        }
        let fused = times(bench, group, "NF4 + LoRA", &host, tokens, &mut buffers, |m| nf4(m, R));
        let plain = times(bench, group, "NF4", &host, tokens, &mut buffers, |m| nf4(m, 0));
        (fused, plain, path)
    };
    if let Some(library) = library {
        let of = |m, r| Dispatched { linear: nf4(m, r), dispatch: Dispatch::DequantizeCublasLt(library) };
        let mut buffers = upload(bench, 1, &of(most, R), &host)?;
        let times = times(bench, group, "dequantise + cuBLASLt", &host, tokens, &mut buffers, |m| of(m, R));
        library_times = Some(times);
    }
    let host = merged(&host, k);
    let mut buffers = upload(bench, sets(bench, &dense), &dense(most, R), &host)?;
    let dense_times = times(bench, group, "bf16 weights + LoRA", &host, tokens, &mut buffers, |m| dense(m, R));
    drop(buffers);
    let mut plain_library = None;
    if let Some(library) = library {
        let of = |m| Dispatched { linear: dense(m, 0), dispatch: Dispatch::DequantizeCublasLt(library) };
        let mut buffers = upload(bench, sets(bench, &dense), &of(most), &host)?;
        plain_library = Some(times(bench, group, "cuBLASLt, bf16, no LoRA", &host, tokens, &mut buffers, of));
    }
    for (i, &m) in tokens.iter().enumerate() {
        let Some(seconds) = fused[i] else { continue };
        let operation = nf4(m, R);
        let over = |times: &Option<Vec<Option<f64>>>| Some(times.as_ref()?[i]? / seconds);
        let (dequantised, library) = (over(&library_times), over(&plain_library));
        let bf16_weights = dense_times[i].map(|dense| dense / seconds);
        let lora = plain[i].map(|plain| 100.0 * (seconds / plain - 1.0));
        let (flops, rate) = (operation.flops() / seconds, operation.bytes() / seconds);
        let ratio = |value: Option<f64>| value.map_or("?".into(), |value| format!("{value:.2}×"));
        println!(
            "{} dequantise + cuBLASLt, {} cuBLASLt without LoRA, {} bf16 weights, {:.0}% of copy | {:.0} TFLOP/s, {:.0} GB/s, {}, LoRA {} | \
             {}, {}",
            ratio(dequantised),
            ratio(library),
            ratio(bf16_weights),
            100.0 * rate / bench.copy,
            flops / 1e12,
            rate / 1e9,
            shown(seconds),
            lora.map_or("?".into(), |lora| format!("{lora:+.1}%")),
            name(group, m),
            path[i],
        );
        let share = rate / bench.copy;
        bench.row(json!({
            "operation": "forward NF4 + LoRA", "group": group.name, "n": total[0], "k": k, "m": m, "r": R, "path": path[i],
            "seconds": seconds, "tflops": flops / 1e12, "gb_per_s": rate / 1e9, "share_of_copy": share,
            "over_dequantise_cublaslt": dequantised, "over_cublaslt": library, "over_bf16_weights": bf16_weights,
            "lora_percent": lora,
        }));
    }
    Ok(())
}

fn upload<O: Operation>(bench: &Bench<'_>, sets: usize, operation: &O, inputs: &O::Inputs) -> Result<Vec<O::Buffers>> {
    (0..sets).map(|_| operation.upload(&bench.device, inputs).map_err(text)).collect()
}
