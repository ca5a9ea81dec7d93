#!/usr/bin/env python3
"""Training speed and memory: qlora-train beside PEFT + bitsandbytes and Unsloth, alternating, on one machine in one go.

    python benches/peers/compare.py MODEL_DIR [--device cpu|cuda] [--binary target/release/qlora-train] [--repeats 5]
    python benches/peers/compare.py --config config.json --device cuda ...

All fine-tune the same model with LoRA r 16 on all linear layers and AdamW, on the same rows of token ids, all supervised,
--batch rows a step. A variant is a program, how it holds the base (NF4 with double quantization, or 16 bits) and what it
computes in. On a CPU all eight are measured by default: ours and PEFT's, NF4 and 16 bits, float32 and bfloat16.
`--config` makes a model of that shape from random weights, for all alike.

A run's step time is the median over its steps after the first two, which touch memory for the first time; a figure is
the median over --repeats runs, which alternate between the variants, with the smallest and the largest beside it. Memory
is the largest that was seen: on a CPU RssAnon (resident memory without file pages), on a GPU what nvidia-smi says is used
there, less what was used before. The first losses of all variants of one base are compared, so that all are known to do
the same work.

Needs the packages of tests/golden/requirements.txt; Unsloth is measured where it is installed, on a GPU only. Run it on a
machine that does nothing else. `--smoke` proves that it works: 3 steps of 32 tokens; its figures mean nothing.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
RATE = 2e-4
R, ALPHA = 16, 32
# The share by which the first losses may differ: bitsandbytes chooses 0.2% of the 8-bit scales differently, and random
# weights' loss in bf16 differs by less than this.
LOSS_TOLERANCE = 0.01
# Steps whose time does not count.
WARMUP = 2
PROGRAMS = {"ours": "qlora-train", "peft": "PEFT", "unsloth": "Unsloth"}
BASES = {"nf4": "NF4", "none": "16 bits"}


class Variant:
    def __init__(self, program, quantization, compute):
        self.program, self.quantization, self.compute = program, quantization, compute
        self.name = f"{program}-{quantization}-{compute}"
        self.label = f"{PROGRAMS[program]}, {BASES[quantization]}, {compute}"


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def family():
    """Numbers of the processor's generation, which the name may keep to itself; none on other processors."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = [re.search(rf"^{name}\s*: (\d+)$", text, re.MULTILINE) for name in ("cpu family", "model")]
    return f"family {found[0][1]}, model {found[1][1]}" if all(found) else None


def instructions():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]


def smi(query):
    """The answer of nvidia-smi for the first GPU that this process may use."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", gpu, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def host_memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def gpu_memory(_):
    return int(smi("memory.used")) << 20


def measured(args, command):
    """The largest memory in bytes, and what was printed."""
    memory = host_memory if args.device == "cpu" else gpu_memory
    before = 0 if args.device == "cpu" else gpu_memory(None)
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    largest = 0

    def watch():
        nonlocal largest
        while process.poll() is None:
            try:
                largest = max(largest, memory(process.pid) - before)
            except (OSError, TypeError):
                pass  # It has just ended.
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{err}\nended with {process.returncode}")
    return largest, out


def ours(variant, args, rows):
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "run"
        command = [args.binary, "train", "--json", "--device", args.device, "--threads", args.threads]
        command += ["--model", args.model, "--data", rows, "--output-dir", out, "--max-length", args.tokens]
        command += ["--per-device-train-batch-size", args.batch, "--gradient-accumulation-steps", 1]
        command += ["--lora-r", R, "--lora-alpha", ALPHA, "--learning-rate", RATE, "--lr-scheduler-type", "constant"]
        command += ["--max-steps", args.steps, "--logging-steps", 1, "--optim", args.optim]
        command += ["--gradient-checkpointing", str(args.recompute).lower(), "--quantization", variant.quantization]
        if args.device == "cpu":
            command += ["--compute", {"float32": "f32", "bfloat16": "bf16"}[variant.compute]]
        memory, _ = measured(args, command)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    ends = [line["seconds"] for line in lines]
    # The beginning of the first step is not known; it does not count anyway.
    times = [None, *(later - earlier for earlier, later in zip(ends, ends[1:]))]
    return {"memory": memory, "losses": [line["loss"] for line in lines], "step_seconds": times}


def theirs(variant, args, rows):
    settings = {
        "model": str(args.model),
        "rows": str(rows),
        "steps": args.steps,
        "device": args.device,
        "threads": args.threads,
        "quantization": variant.quantization,
        "compute": variant.compute,
        "recompute": args.recompute,
        "optim": args.optim,
        "length": args.tokens,
        "rate": RATE,
        "r": R,
        "alpha": ALPHA,
    }
    memory, out = measured(args, [sys.executable, HERE / "trainers.py", variant.program, json.dumps(settings)])
    return {"memory": memory, **json.loads(out.splitlines()[-1])}


def summary(args, runs):
    """The figures of the runs of one variant."""
    steps = [statistics.median(run["step_seconds"][WARMUP:]) for run in runs]
    speeds = sorted(args.tokens * args.batch / step for step in steps)
    reserved = [run["torch_reserved_bytes"] for run in runs if "torch_reserved_bytes" in run]
    return {
        "step_seconds": [round(step, 5) for step in steps],
        "tokens_per_second": round(statistics.median(speeds), 2),
        "tokens_per_second_min": round(speeds[0], 2),
        "tokens_per_second_max": round(speeds[-1], 2),
        "memory_bytes": max(run["memory"] for run in runs),
        **({"torch_reserved_bytes": max(reserved)} if reserved else {}),
        "losses": [round(loss, 5) for loss in runs[0]["losses"]],
    }


def random_model(config, scratch, device):
    """A directory with a model of this shape, random weights in bf16."""
    import torch
    import transformers

    torch.manual_seed(42)
    made = transformers.LlamaConfig(**{**json.loads(pathlib.Path(config).read_text()), "dtype": "bfloat16"})
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.LlamaForCausalLM(made)
    path = pathlib.Path(scratch) / "model"
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def variants_here(args):
    """Those that are measured, and why programs are left out."""
    absent = {}
    if args.device == "cpu":
        absent["unsloth"] = "needs a GPU"
        found = [Variant(p, q, c) for q in BASES for c in ("float32", "bfloat16") for p in ("ours", "peft")]
        if not {"avx512_bf16", "amx_bf16"} & set(instructions()):
            absent["ours"] = "in bfloat16: this processor has no instructions for it"
            found = [variant for variant in found if (variant.program, variant.compute) != ("ours", "bfloat16")]
        return found, absent
    programs = ["ours", "peft"]
    if importlib.util.find_spec("unsloth") is None:
        absent["unsloth"] = "not installed"
    else:
        programs.append("unsloth")
    return [Variant(program, "nf4", "bfloat16") for program in programs], absent


def versions(variants):
    names = ["torch", "transformers", "peft", "bitsandbytes"]
    names += ["unsloth"] if any(variant.program == "unsloth" for variant in variants) else []
    return {**{name: importlib.metadata.version(name) for name in names}, "python": platform.python_version()}


def compare(args):
    config = json.loads((pathlib.Path(args.model) / "config.json").read_text())
    generator = random.Random(7)
    rows_of_ids = [generator.choices(range(3, config["vocab_size"]), k=args.tokens) for _ in range(args.batch)]
    variants, absent = variants_here(args)
    if args.only:
        variants = [variant for variant in variants if any(part in variant.name for part in args.only)]
    runs = {variant.name: [] for variant in variants}
    with tempfile.TemporaryDirectory() as scratch:
        rows = pathlib.Path(scratch) / "rows.jsonl"
        rows.write_text("".join(json.dumps({"input_ids": ids, "labels": ids}) + "\n" for ids in rows_of_ids))
        for _ in range(args.repeats):
            for variant in variants:
                done = (ours if variant.program == "ours" else theirs)(variant, args, rows)
                runs[variant.name].append(done)
                step = statistics.median(done["step_seconds"][WARMUP:])
                text = f"{variant.label}: {step:.3f} s a step, {done['memory'] / 1e9:.2f} GB"
                print(text, file=sys.stderr, flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "device": args.device,
        "processor": processor(),
        "family": family(),
        **({"gpu": smi("name"), "driver": smi("driver_version")} if args.device == "cuda" else {}),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load_average_after": round(os.getloadavg()[0], 2),
        "model": "random weights of " + pathlib.Path(args.config).name if args.config else pathlib.Path(args.model).name,
        "tokens_per_row": args.tokens,
        "rows_per_step": args.batch,
        "optim": args.optim,
        "gradient_checkpointing": args.recompute,
        "steps": args.steps,
        "repeats": args.repeats,
        "versions": versions(variants),
        "smoke": args.smoke,
        "variants": {variant.name: {"label": variant.label, **summary(args, runs[variant.name])} for variant in variants},
        "not_measured": absent,
    }
    compare_losses(variants, result["variants"])
    peers = [variant.name for variant in variants if variant.program != "ours"]
    if peers:
        fastest = max(peers, key=lambda name: result["variants"][name]["tokens_per_second"])
        result["fastest_peer"] = fastest
        for variant in variants:
            mine = result["variants"][variant.name]
            mine["speed_to_fastest_peer"] = ratio(mine, result["variants"][fastest], "tokens_per_second")
            twin = result["variants"].get(f"peft-{variant.quantization}-{variant.compute}")
            if variant.program == "ours" and twin:
                mine["speed_to_same_peer"] = ratio(mine, twin, "tokens_per_second")
                mine["memory_to_same_peer"] = ratio(mine, twin, "memory_bytes")
    return result


def ratio(mine, other, key):
    return round(mine[key] / other[key], 3) if other[key] > 0 else None


def compare_losses(variants, found):
    """Ends the program where two variants of one base begin with different losses."""
    for quantization in BASES:
        names = [variant.name for variant in variants if variant.quantization == quantization]
        for name in names[1:]:
            first, second = found[names[0]]["losses"][0], found[name]["losses"][0]
            if abs(first - second) > LOSS_TOLERANCE * second:
                sys.exit(f"the first losses are {first} ({names[0]}) and {second} ({name}): they do not do the same work")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="directory of the model")
    parser.add_argument("--config", help="a config.json instead: random weights of that shape")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=512, help="of each row (default 512)")
    parser.add_argument("--batch", type=int, default=1, help="rows a step (default 1)")
    parser.add_argument("--steps", type=int, default=10, help=f"of a run; the first {WARMUP} are not timed (default 10)")
    parser.add_argument("--optim", default="adamw_torch", choices=["adamw_torch", "adamw_8bit"])
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing, for all")
    parser.add_argument("--only", nargs="+", help="parts of the names of the variants to measure, such as ours peft-nf4")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "records")
    parser.add_argument("--smoke", action="store_true", help="a few tokens and steps; writes no record")
    args = parser.parse_args()
    if (args.model is None) == (args.config is None):
        parser.error("name either the directory of a model or --config")
    if args.steps <= WARMUP or args.repeats < 1 or args.tokens < 2 or args.batch < 1:
        parser.error(f"expected 1 or more --repeats and rows, 2 or more tokens, and more than {WARMUP} --steps")
    if args.device == "cuda" and shutil.which("nvidia-smi") is None:
        parser.error("--device cuda: found no nvidia-smi, so no GPU is known here")
    if args.smoke:
        args.steps, args.tokens, args.batch, args.repeats = WARMUP + 1, 32, min(args.batch, 2), 1
    return args


def write_record(out, result, kind, *details):
    """Writes DATE-KIND-MACHINE-MODEL-DETAILS.json, and prints where."""

    def plain(text):
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

    # Processors of two generations may have one name.
    machine = result.get("gpu") or " ".join(filter(None, [result["processor"], result.get("family")]))
    names = [result["date"], kind, plain(machine), plain(result["model"])]
    out.mkdir(parents=True, exist_ok=True)
    path = out / ("-".join([*names, *map(str, details)]) + ".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if args.config:
            args.model = random_model(args.config, scratch, args.device)
        result = compare(args)
    for name, why in result["not_measured"].items():
        print(f"{PROGRAMS[name]}: not measured ({why})")
    for found in result["variants"].values():
        print(
            f"{found['label']:<36}{found['tokens_per_second']:>9.1f} tokens/s "
            f"({found['tokens_per_second_min']:.1f} to {found['tokens_per_second_max']:.1f}), "
            f"{found['memory_bytes'] / 1e9:.2f} GB, {found.get('speed_to_fastest_peer')} of the fastest peer"
        )
    if args.smoke:
        return print("smoke: no record written")
    write_record(args.out, result, args.device, args.tokens)


if __name__ == "__main__":
    main()
