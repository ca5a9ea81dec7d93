#!/usr/bin/env python3
"""Training speed and memory on a CPU: PEFT + bitsandbytes and qlora-train, alternating, on one machine in one go.

    python benches/peers/cpu.py MODEL_DIR [--binary target/release/qlora-train] [--repeats 3] [--out benches/peers/records]

Both fine-tune MODEL_DIR in NF4 with double quantisation, LoRA r 16 on all linear layers, AdamW, on the same row of 512
token ids, all supervised, one row a step. A figure is the wall time of a process with 24 steps minus that of one with 8,
divided by 16: start, load and first touches cancel. Memory is the largest RssAnon (resident memory without file pages)
that was seen in the run of 24 steps. The losses of both are compared, so that both are known to do the same work.

Needs the packages of tests/golden/requirements.txt. Run it on a machine that does nothing else. `--smoke` proves that it
works: 2 steps minus 1 and 32 tokens, and its figures mean nothing.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RATE = 2e-4
# The share by which the mean losses of both may differ: they choose 0.2% of the 8-bit scales differently.
LOSS_TOLERANCE = 0.01


def peer(args):
    """The process that is measured: PEFT + bitsandbytes. Prints one JSON object."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(42)
    compute = getattr(torch, args.compute)
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, quantization_config=settings, dtype=compute, device_map={"": "cpu"}
    )
    for module in model.modules():
        # Where the processor has avx512_bf16, bitsandbytes would repack the weight for inference and lose gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    lora = peft.LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MODULES, task_type="CAUSAL_LM", bias="none"
    )
    model = peft.get_peft_model(model, lora)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    ids = torch.tensor([json.loads(pathlib.Path(args.rows).read_text())["input_ids"]])
    losses = []
    for _ in range(args.steps):
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    print(json.dumps({"losses": losses, "trainable": sum(p.numel() for p in parameters)}))


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def instructions():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]


def measured(command):
    """Wall seconds, largest RssAnon in bytes, and what was printed."""
    start = time.perf_counter()
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    largest = 0

    def watch():
        nonlocal largest
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                largest = max(largest, int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024)
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
        command = [args.binary, "train", "--json", "--device", "cpu", "--threads", args.threads]
        command += ["--model", args.model, "--data", rows, "--output-dir", out, "--max-length", args.tokens]
        command += ["--lora-r", 16, "--lora-alpha", 32, "--learning-rate", RATE, "--lr-scheduler-type", "constant"]
        command += ["--max-steps", steps, "--gradient-checkpointing", "false", "--optim", "adamw_torch"]
        seconds, memory, _ = measured(command)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return seconds, memory, [line["loss"] for line in lines if "loss" in line]


def theirs(args, rows, steps):
    command = [sys.executable, __file__, args.model, "--peer", "--rows", rows, "--steps", steps]
    command += ["--threads", args.threads, "--compute", args.compute]
    seconds, memory, out = measured(command)
    return seconds, memory, json.loads(out.splitlines()[-1])["losses"]


def versions():
    import importlib.metadata

    names = ("torch", "transformers", "peft", "bitsandbytes")
    return {name: importlib.metadata.version(name) for name in names}


def summary(args, runs, short, long):
    """Of the runs of one program: seconds by number of steps, and what follows."""
    seconds = {steps: [run[0] for run in runs[steps]] for steps in (short, long)}
    step = (statistics.median(seconds[long]) - statistics.median(seconds[short])) / (long - short)
    return {
        "seconds": {str(steps): [round(s, 3) for s in values] for steps, values in seconds.items()},
        "step_seconds": round(step, 4),
        "tokens_per_second": round(args.tokens / step, 2) if step > 0 else None,
        "rss_anon_bytes": max(run[1] for run in runs[long]),
        "losses": [round(loss, 5) for loss in runs[long][0][2]],
    }


def compare(args):
    short, long = (1, 2) if args.smoke else (8, 24)
    args.tokens = 32 if args.smoke else 512
    repeats = 1 if args.smoke else args.repeats
    config = json.loads((pathlib.Path(args.model) / "config.json").read_text())
    ids = random.Random(7).choices(range(3, config["vocab_size"]), k=args.tokens)
    runs = {"ours": {short: [], long: []}, "peer": {short: [], long: []}}
    with tempfile.TemporaryDirectory() as scratch:
        rows = pathlib.Path(scratch) / "rows.jsonl"
        rows.write_text(json.dumps({"input_ids": ids, "labels": ids}) + "\n")
        for repeat in range(repeats):
            for steps in (short, long):
                for name, run in (("ours", ours), ("peer", theirs)):
                    runs[name][steps].append(run(args, rows, steps))
                    done = runs[name][steps][-1]
                    print(f"{name} {steps} steps: {done[0]:.1f} s, {done[1] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "instructions": instructions(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load_average_after": round(os.getloadavg()[0], 2),
        "model": config.get("_name_or_path") or pathlib.Path(args.model).name,
        "tokens_per_step": args.tokens,
        "steps": [short, long],
        "repeats": repeats,
        "peer_compute": args.compute,
        "versions": {**versions(), "python": platform.python_version()},
        "smoke": args.smoke,
        "ours": summary(args, runs["ours"], short, long),
        "peer": summary(args, runs["peer"], short, long),
    }
    mine, other = result["ours"], result["peer"]
    first, second = mine["losses"][0], other["losses"][0]
    if abs(first - second) > LOSS_TOLERANCE * second:
        sys.exit(f"the first losses are {first} and {second}: the two do not do the same work")
    if mine["tokens_per_second"] and other["tokens_per_second"]:
        result["speed_ratio"] = round(mine["tokens_per_second"] / other["tokens_per_second"], 3)
    result["memory_ratio"] = round(mine["rss_anon_bytes"] / other["rss_anon_bytes"], 3)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="directory of the model")
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compute", default="float32", choices=["float32", "bfloat16"], help="bitsandbytes' compute dtype")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "records")
    parser.add_argument("--smoke", action="store_true", help="a few tokens and steps; writes no record")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    result = compare(args)
    for name in ("ours", "peer"):
        speed, memory = result[name]["tokens_per_second"], result[name]["rss_anon_bytes"]
        print(f"{name}: {speed} tokens/s, {memory / 1e9:.2f} GB")
    print(f"ours / peer: speed {result.get('speed_ratio')}, memory {result['memory_ratio']}")
    if args.smoke:
        return print("smoke: no record written")
    args.out.mkdir(parents=True, exist_ok=True)
    machine = re.sub(r"[^a-z0-9]+", "-", result["processor"].lower()).strip("-")
    path = args.out / f"{result['date']}-cpu-{machine}-{args.compute}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
