#!/usr/bin/env python3
"""A training run whose base weights stay on disk, beside the run in memory, on random weights of a model's shape.

    python3 benches/streaming/run.py llama-3-8b SCRATCH [--layers N] [--tokens 32] [--steps 3] [--no-resident] [--peft PYTHON]

Makes the checkpoint with checkpoint.py in SCRATCH and verifies it by its hashes, trains --steps optimizer steps of one row
of --tokens tokens with `weights: resident` and with `weights: disk`, and once more on disk with a kill after the first
checkpoint and a run that goes on. Measured of each: seconds a step, the seconds that the computation waited for the disk, the
most anonymous memory of the process (RssAnon, every 5 ms) beside the plan. The run on disk may not take more memory than the
plan and --slack: RLIMIT_DATA, which the kernel enforces. Ends with an error where the adapters' bytes differ, or where more
was held than planned. Writes records/<shape>-<layers>.json beside this file; the checkpoint is deleted. Standard library
only.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time

import checkpoint

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent


def anonymous(pid):
    """Bytes of anonymous memory of a process now."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)


class Runs:
    def __init__(self, args, model):
        self.args, self.model = args, model
        self.rows = args.scratch / "rows.jsonl"
        rows = [{"input_ids": [3 + (37 * row + 11 * at) % 500 for at in range(args.tokens)]} for row in range(args.steps)]
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(self, name, weights, out):
        line = [self.args.binary, name, "--device", "cpu", "--model", self.model, "--data", self.rows, "--output-dir", out,
                "--max-length", self.args.tokens, "--packing", "false", "--max-steps", self.args.steps, "--save-steps", 1,
                "--resume-from-checkpoint", "true", "--gradient-checkpointing", "true", "--weights", weights, "--json"]
        return [str(word) for word in line]

    def planned(self, weights):
        done = subprocess.run(self.command("plan", weights, self.args.scratch / "none"), capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return json.loads(done.stdout)["host"]["peak_bytes"]

    def train(self, weights, out, limit=None, kill_after=None):
        """The answer of the run with its peak, or None where it was killed after that checkpoint."""
        def bound():
            if limit:
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        said, begun, peak = self.args.scratch / "said", time.monotonic(), 0
        with open(said, "w") as err:
            process = subprocess.Popen(self.command("train", weights, out), stdout=subprocess.PIPE, stderr=err, text=True,
                                       preexec_fn=bound)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            if kill_after and (out / f"checkpoint-{kill_after}" / "adapter_config.json").exists():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return None
            time.sleep(0.005)
        text = process.stdout.read()
        if process.returncode != 0:
            sys.exit(f"{said.read_text()}\nended with {process.returncode}")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        seconds = [line["seconds"] for line in lines if "loss" in line and "seconds" in line]
        each = [after - before for before, after in zip([0.0] + seconds, seconds)]
        return {**json.loads(text), "wall_seconds": time.monotonic() - begun, "seconds_each_step": each,
                "losses": [line["loss"] for line in lines if "loss" in line], "anonymous_bytes": peak,
                "adapter_sha256": hashlib.sha256((out / "adapter_model.safetensors").read_bytes()).hexdigest()}


def measured(runs, weights, out, limit=None):
    planned = runs.planned(weights)
    found = runs.train(weights, out, planned + limit if limit else None)
    steps, read = found["steps"], found["weights_read"]
    record = {"planned_bytes": planned, "anonymous_bytes": found["anonymous_bytes"],
              "measured_over_planned": found["anonymous_bytes"] / planned, "seconds_each_step": found["seconds_each_step"],
              "losses": found["losses"], "wall_seconds_with_loading": found["wall_seconds"],
              "adapter_sha256": found["adapter_sha256"]}
    if read:
        record["read"] = {"bytes_per_step": read["bytes"] / steps, "gb_per_second": read["bytes"] / read["seconds"] / 1e9,
                          "reading_seconds_per_step": read["seconds"] / steps,
                          "waited_seconds_per_step": read["waited_seconds"] / steps}
    if limit:
        record["data_limit_bytes"] = planned + limit
    print(weights, json.dumps(record, indent=1), flush=True)
    return record


def peft_keys(python, model, adapter):
    """The words of peft_keys.py, which PEFT's own loader has to be content with."""
    done = subprocess.run([python, HERE / "peft_keys.py", model, adapter], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "unknown")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"processor": model, "cores": os.cpu_count(), "memory_bytes": pages, "system": platform.release()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(checkpoint.SHAPES))
    parser.add_argument("scratch", type=pathlib.Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--slack", type=int, default=256 << 20, help="bytes of RLIMIT_DATA beyond the plan: stacks, code")
    parser.add_argument("--no-resident", action="store_true", help="leave out the run in memory, where it does not fit")
    parser.add_argument("--binary", default=ROOT / "target/release/qlora-train")
    parser.add_argument("--peft", help="a Python with torch, transformers and peft, which has to load the adapter")
    parser.add_argument("--note", help="a sentence for the record")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True)
    model = args.scratch / "model"
    begun = time.monotonic()
    total = checkpoint.make(args.shape, model, args.layers, args.seed)
    made = time.monotonic() - begun
    checkpoint.verify(model)
    c = json.loads((model / "config.json").read_text())
    digest = checkpoint.sum_of(model)
    print(f"{total / 1e9:.2f} GB made in {made:.0f} s and verified: {digest}", flush=True)
    try:
        runs = Runs(args, model)
        disk = measured(runs, "disk", args.scratch / "disk", args.slack)
        resident = None if args.no_resident else measured(runs, "resident", args.scratch / "resident")
        interrupted = args.scratch / "interrupted"
        killed = runs.train("disk", interrupted, kill_after=1) is None
        resumed = runs.train("disk", interrupted) if killed else sys.exit("the run was not killed")
        keys = peft_keys(args.peft, model, interrupted) if args.peft else None
    finally:
        shutil.rmtree(model)
    same = {"resumed": resumed["adapter_sha256"] == disk["adapter_sha256"]}
    if resident:
        same["resident"] = resident["adapter_sha256"] == disk["adapter_sha256"]
    record = {
        "shape": args.shape, "layers": c["num_hidden_layers"], "layers_of_the_model": checkpoint.SHAPES[args.shape][2],
        "seed": args.seed, "checkpoint_bytes": total, "checkpoint_sha256": digest, "rows": 1,
        "tokens": args.tokens, "steps": args.steps, "disk": disk, "resident": resident,
        "killed_after_step_1_and_resumed": {"adapter_sha256": resumed["adapter_sha256"]},
        "adapter_is_the_same_as": same, "loaded_by_peft": keys, "machine": machine(), "note": args.note,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    path = HERE / "records" / f"{args.shape}-{c['num_hidden_layers']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)
    if not all(same.values()):
        sys.exit(f"the adapters differ: {same}")
    for run in filter(None, [disk, resident]):
        if run["anonymous_bytes"] > run["planned_bytes"]:
            sys.exit(f"more was held than planned: {run['anonymous_bytes']} of {run['planned_bytes']} bytes")
    shutil.rmtree(args.scratch)


if __name__ == "__main__":
    main()
