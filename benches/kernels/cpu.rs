//! Without a GPU: the storage format's code and the naive linear layer, on the CPU.

use criterion::{Criterion, Throughput};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::reference;
use qlora_kernels::rng::RngStream;
use std::hint::black_box;

pub fn run(mut criterion: Criterion, quick: bool) {
    println!(
        "NOT A GPU: these are the CPU's quantize, dequantize and reference code; they say nothing about the kernels."
    );
    let (n, k) = if quick { (1024, 1024) } else { (1024, 8192) };
    let mut stream = RngStream::new(1, 1);
    let mut values = |len: usize| -> Vec<f32> { (0..len).map(|_| stream.uniform() * 2.0 - 1.0).collect() };
    let weight = values(n * k);
    let options = Nf4Options::default();
    let matrix = Nf4Matrix::quantize(&weight, n, k, &options).expect("finite weights of a valid shape");
    let again = Nf4Matrix::quantize(&matrix.dequantize(), n, k, &options).expect("as above");
    assert_eq!(matrix.codes(), again.codes(), "verified before it is timed: quantizing is idempotent in its codes");
    let mut group = criterion.benchmark_group(format!("CPU {n}×{k}"));
    group.throughput(Throughput::Bytes((n * k * 4 + matrix.bytes()) as u64));
    group.bench_function("quantize f32", |bencher| {
        bencher.iter(|| Nf4Matrix::quantize(black_box(&weight), n, k, &options));
    });
    group.bench_function("dequantize f32", |bencher| bencher.iter(|| black_box(&matrix).dequantize()));
    group.throughput(Throughput::Bytes((n * k * 2 + matrix.bytes()) as u64));
    group.bench_function("dequantize bf16", |bencher| bencher.iter(|| black_box(&matrix).dequantize_bf16()));
    let (m, mut y) = (4, vec![0.0; 4 * n]);
    let x = values(m * k);
    group.throughput(Throughput::Elements((2 * m * n * k) as u64));
    group.bench_function("reference linear f32, M 4, in FLOP", |bencher| {
        bencher.iter(|| reference::linear(black_box(&x), &weight, None, None, &mut y, n, k));
    });
    group.finish();
    println!("NOT A GPU: see above. On a GPU: `cargo bench --features cuda --bench kernels`.");
}
