#!/usr/bin/env python3
"""Training speed and memory: qlora-train beside PEFT + bitsandbytes and Unsloth, alternating, on one machine in one go.

    python benches/peers/compare.py MODEL_DIR [--device cpu|cuda] [--binary target/release/qlora-train] [--repeats 3]
    python benches/peers/compare.py --config config.json --device cuda ...

All fine-tune the same model in NF4 with double quantization, LoRA r 16 on all linear layers, AdamW, on the same rows of
token ids, all supervised, --batch rows a step. `--config` makes a model of that shape from random weights, for all alike.
A figure is the wall time of a process with the larger number of --steps minus that of one with the smaller, divided by
the difference: start, load and first touches cancel. Memory is the largest that was seen in the longer run: on a CPU
RssAnon (resident memory without file pages), on a GPU what nvidia-smi says is used there, less what was used before. The
first losses are compared, so that all are known to do the same work.

Needs the packages of tests/golden/requirements.txt; Unsloth is measured where it is installed, on a GPU only. Run it on a
machine that does nothing else. `--smoke` proves that it works: 2 steps minus 1 and 32 tokens; its figures mean nothing.
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
PEERS = {"peft": "PEFT + bitsandbytes", "unsloth": "Unsloth"}


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def instructions():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]


def smi(query):
    """What nvidia-smi says of the first GPU that this process may use."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", gpu, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def host_memory(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def gpu_memory(_):
    return int(smi("memory.used")) << 20


def measured(args, command):
    """Wall seconds, the largest memory in bytes, and what was printed."""
    memory = host_memory if args.device == "cpu" else gpu_memory
    before = 0 if args.device == "cpu" else gpu_memory(None)
    start = time.perf_counter()
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
    seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{err}\nended with {process.returncode}")
    return seconds, largest, out


def ours(args, rows, steps):
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "run"
        command = [args.binary, "train", "--json", "--device", args.device, "--threads", args.threads]
        command += ["--model", args.model, "--data", rows, "--output-dir", out, "--max-length", args.tokens]
        command += ["--per-device-train-batch-size", args.batch, "--gradient-accumulation-steps", 1]
        command += ["--lora-r", R, "--lora-alpha", ALPHA, "--learning-rate", RATE, "--lr-scheduler-type", "constant"]
        command += ["--max-steps", steps, "--gradient-checkpointing", str(args.recompute).lower(), "--optim", args.optim]
        seconds, memory, _ = measured(args, command)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": seconds, "memory": memory, "losses": [line["loss"] for line in lines if "loss" in line]}


def theirs(name, args, rows, steps):
    settings = {
        "model": str(args.model),
        "rows": str(rows),
        "steps": steps,
        "device": args.device,
        "threads": args.threads,
        "compute": args.compute,
        "recompute": args.recompute,
        "optim": args.optim,
        "length": args.tokens,
        "rate": RATE,
        "r": R,
        "alpha": ALPHA,
    }
    seconds, memory, out = measured(args, [sys.executable, HERE / "trainers.py", name, json.dumps(settings)])
    printed = json.loads(out.splitlines()[-1])
    return {"seconds": seconds, "memory": memory, **printed}


def summary(args, runs):
    """Of the runs of one program, by number of steps."""
    short, long = args.steps
    seconds = {steps: [run["seconds"] for run in runs[steps]] for steps in args.steps}
    step = (statistics.median(seconds[long]) - statistics.median(seconds[short])) / (long - short)
    reserved = [run["torch_reserved_bytes"] for run in runs[long] if "torch_reserved_bytes" in run]
    return {
        "seconds": {str(steps): [round(s, 3) for s in values] for steps, values in seconds.items()},
        "step_seconds": round(step, 5),
        "tokens_per_second": round(args.tokens * args.batch / step, 2) if step > 0 else None,
        "memory_bytes": max(run["memory"] for run in runs[long]),
        **({"torch_reserved_bytes": max(reserved)} if reserved else {}),
        "losses": [round(loss, 5) for loss in runs[long][0]["losses"]],
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


def peers_here(args):
    """Name by program, and why the others are left out."""
    present, absent = ["peft"], {}
    if args.device == "cpu":
        absent["unsloth"] = "needs a GPU"
    elif importlib.util.find_spec("unsloth") is None:
        absent["unsloth"] = "not installed"
    else:
        present.append("unsloth")
    return present, absent


def versions(peers):
    names = ["torch", "transformers", "peft", "bitsandbytes"] + [name for name in peers if name != "peft"]
    return {**{name: importlib.metadata.version(name) for name in names}, "python": platform.python_version()}


def compare(args):
    config = json.loads((pathlib.Path(args.model) / "config.json").read_text())
    generator = random.Random(7)
    rows_of_ids = [generator.choices(range(3, config["vocab_size"]), k=args.tokens) for _ in range(args.batch)]
    peers, absent = peers_here(args)
    programs = {"ours": ours, **{name: lambda *a, name=name: theirs(name, *a) for name in peers}}
    runs = {name: {steps: [] for steps in args.steps} for name in programs}
    with tempfile.TemporaryDirectory() as scratch:
        rows = pathlib.Path(scratch) / "rows.jsonl"
        rows.write_text("".join(json.dumps({"input_ids": ids, "labels": ids}) + "\n" for ids in rows_of_ids))
        for _ in range(args.repeats):
            for steps in args.steps:
                for name, run in programs.items():
                    done = run(args, rows, steps)
                    runs[name][steps].append(done)
                    text = f"{name} {steps} steps: {done['seconds']:.1f} s, {done['memory'] / 1e9:.2f} GB"
                    print(text, file=sys.stderr, flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "device": args.device,
        "processor": processor(),
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
        "peer_compute": args.compute,
        "versions": versions(peers),
        "smoke": args.smoke,
        "ours": summary(args, runs["ours"]),
        "peers": {name: summary(args, runs[name]) for name in peers},
        "not_measured": absent,
    }
    mine = result["ours"]
    for name, other in result["peers"].items():
        first, second = mine["losses"][0], other["losses"][0]
        if abs(first - second) > LOSS_TOLERANCE * second:
            sys.exit(f"the first losses are {first} (ours) and {second} ({name}): the two do not do the same work")
        if mine["tokens_per_second"] and other["tokens_per_second"]:
            other["speed_ratio"] = round(mine["tokens_per_second"] / other["tokens_per_second"], 3)
        if mine["memory_bytes"] > 0 and other["memory_bytes"] > 0:
            other["memory_ratio"] = round(mine["memory_bytes"] / other["memory_bytes"], 3)
    return result


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="directory of the model")
    parser.add_argument("--config", help="a config.json instead: random weights of that shape")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=512, help="of each row (default 512)")
    parser.add_argument("--batch", type=int, default=1, help="rows a step (default 1)")
    parser.add_argument("--steps", type=int, nargs=2, default=[8, 24], metavar=("FEW", "MANY"))
    parser.add_argument("--optim", default="adamw_torch", choices=["adamw_torch", "adamw_8bit"])
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing, for all")
    parser.add_argument("--compute", choices=["float32", "bfloat16"], help="of the peers (default: float32 on a CPU)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "records")
    parser.add_argument("--smoke", action="store_true", help="a few tokens and steps; writes no record")
    args = parser.parse_args()
    if (args.model is None) == (args.config is None):
        parser.error("name either the directory of a model or --config")
    if args.steps[0] < 1 or args.steps[1] <= args.steps[0] or args.repeats < 1 or args.tokens < 2 or args.batch < 1:
        parser.error("expected 1 or more --repeats and rows, 2 or more tokens, and --steps FEW MANY with 1 <= FEW < MANY")
    if args.device == "cuda" and shutil.which("nvidia-smi") is None:
        parser.error("--device cuda: found no nvidia-smi, so no GPU is known here")
    args.compute = args.compute or ("float32" if args.device == "cpu" else "bfloat16")
    if args.smoke:
        args.steps, args.tokens, args.batch, args.repeats = [1, 2], 32, min(args.batch, 2), 1
    return args


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if args.config:
            args.model = random_model(args.config, scratch, args.device)
        result = compare(args)
    for name, label in {"ours": "qlora-train", **PEERS}.items():
        if name in result["not_measured"]:
            print(f"{label}: not measured ({result['not_measured'][name]})")
            continue
        found = result["ours"] if name == "ours" else result["peers"][name]
        line = f"{label}: {found['tokens_per_second']} tokens/s, {found['memory_bytes'] / 1e9:.2f} GB"
        if name != "ours":
            line += f"; ours beside it: speed {found.get('speed_ratio')}, memory {found.get('memory_ratio')}"
        print(line)
    if args.smoke:
        return print("smoke: no record written")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = re.sub(r"[^a-z0-9]+", "-", result.get("gpu", result["processor"]).lower()).strip("-")
    model = re.sub(r"[^a-z0-9]+", "-", result["model"].lower()).strip("-")
    path = args.out / f"{result['date']}-{args.device}-{machine}-{model}-{args.compute}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
