#!/usr/bin/env python3
"""Speed of text on a CPU: qlora-train beside llama.cpp, alternating, on one machine in one go.

    python benches/peers/text.py MODEL_DIR MODEL.gguf [--prompt 256] [--answer 256] [--repeats 5]

MODEL_DIR holds the model's config.json; `qlora-train bench --generate` measures that shape in NF4 with random weights,
whose values change no time. MODEL.gguf is the same model in any type; llama.cpp (the package llama-cpp-python, built here
for this processor) quantizes it to Q4_0 first and computes with as many threads. A prompt of random tokens is read, then
answered token by token, the most likely one each time. A figure is the median over --repeats runs, which alternate, with
the smallest and the largest beside it.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

from compare import HERE, family, instructions, processor, ratio, write_record

FIGURES = {"prompt_tokens_per_second": "read", "tokens_per_second": "written"}


def ours(args):
    command = [args.binary, "bench", "--json", "--device", "cpu", "--threads", args.threads, "--shape", args.model]
    command += ["--seq", args.prompt, "--generate", args.answer]
    done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found = json.loads(done.stdout)
    kept = ["weight_bytes", "read_bandwidth", "share_of_bandwidth"]
    return {key: found[key] for key in [*FIGURES, *kept]}


def theirs(args, path):
    """In a process of its own, as ours."""
    program = f"import sys; sys.path.insert(0, {str(HERE)!r}); import text; text.llama({str(path)!r}, {args.prompt}, {args.answer}, {args.threads})"
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])


def llama(path, prompt, answer, threads):
    """Prints what one run measures."""
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=prompt + answer, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    generator = random.Random(7)
    tokens = generator.choices(range(3, model.n_vocab()), k=prompt)
    # The first touch of weights and cache does not count.
    model.eval(tokens[:8])
    model.reset()
    times = [time.perf_counter()]
    model.eval(tokens)
    for _ in range(answer - 1):
        token = model.sample(temp=0.0)
        times.append(time.perf_counter())
        model.eval([token])
    model.sample(temp=0.0)
    times.append(time.perf_counter())
    each = [after - before for before, after in zip(times, times[1:])]
    print(json.dumps({"prompt_tokens_per_second": prompt / each[0], "tokens_per_second": 1.0 / statistics.mean(each[1:])}))


def quantize(source, path):
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    settings.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(settings)) != 0:
        sys.exit(f"llama.cpp could not quantize {source}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="directory with the model's config.json")
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "records")
    args = parser.parse_args()
    runs = {"ours": [], "llama.cpp": []}
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "q4_0.gguf"
        quantize(args.gguf, path)
        q4_bytes = path.stat().st_size
        for _ in range(args.repeats):
            runs["ours"].append(ours(args))
            runs["llama.cpp"].append(theirs(args, path))
            print({name: found[-1] for name, found in runs.items()}, file=sys.stderr, flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "family": family(),
        "instructions": instructions(),
        "threads": args.threads,
        "load_average_after": round(os.getloadavg()[0], 2),
        "model": pathlib.Path(args.model).name,
        "prompt": args.prompt,
        "answer": args.answer,
        "repeats": args.repeats,
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        "q4_0_file_bytes": q4_bytes,
        "runs": runs,
    }
    medians = {name: {key: statistics.median(run[key] for run in found) for key in FIGURES} for name, found in runs.items()}
    result["medians"] = medians
    result["ratios"] = {key: ratio(medians["ours"], medians["llama.cpp"], key) for key in FIGURES}
    for name, found in runs.items():
        for key, done in FIGURES.items():
            values = sorted(run[key] for run in found)
            print(f"{name:<12}{medians[name][key]:>9.1f} tokens/s {done} ({values[0]:.1f} to {values[-1]:.1f})")
    share = statistics.median(run["share_of_bandwidth"] for run in runs["ours"])
    print(f"ratios {result['ratios']}; ours reads its weights at {100 * share:.0f}% of the speed of memory")
    write_record(args.out, result, "text", args.prompt, args.answer)


if __name__ == "__main__":
    main()
