#!/usr/bin/env python3
"""Forecasts of `plan --measure` beside the time that the runs then take, on this machine's CPU.

    python3 benches/forecast.py [--binary target/release/qlora-train] [--model target/models/smollm2-135m-instruct]

Runs of some seconds on the demo's rows: packed and not, evaluated, with recomputation, in f32, long, of a larger rank.
Of each the time of its steps and evaluations is compared: the seconds of the whole process less those of a start, which
are those of `plan` of the same settings. Loading the weights and writing the adapter count as the run's. Run it on a
machine that does nothing else.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = [
    ("packed", "--max-length 512 --max-steps 24"),
    ("packed, f32", "--max-length 512 --max-steps 12 --compute f32"),
    ("4 rows of a batch", "--max-length 512 --max-steps 30 --packing false --per-device-train-batch-size 4"),
    ("5 evaluations", "--max-length 256 --max-steps 30 --val-set-size 0.2 --eval-steps 6"),
    ("recomputed", "--max-length 512 --max-steps 16 --gradient-checkpointing true"),
    ("2,048 tokens, accumulated", "--max-length 2048 --max-steps 5 --gradient-accumulation-steps 2"),
    ("r 64", "--max-length 512 --max-steps 16 --lora-r 64"),
]


def timed(command):
    begun = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(part) for part in command)}\n{done.stderr}\nended with {done.returncode}")
    return time.perf_counter() - begun, done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/qlora-train")
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "target/models/smollm2-135m-instruct")
    args = parser.parse_args()
    worst = 0.0
    for name, settings in RUNS:
        with tempfile.TemporaryDirectory() as work:
            common = ["--device", "cpu", "--model", args.model, "--data", ROOT / "examples/data/habit.train.jsonl"]
            common += ["--output-dir", pathlib.Path(work) / "out", "--allow", "all", "--json", *settings.split()]
            start, _ = timed([args.binary, "plan", *common])
            _, planned = timed([args.binary, "plan", "--measure", *common])
            whole, _ = timed([args.binary, "train", *common])
        forecast = json.loads(planned)["forecast"]
        expected, took = forecast["hours"] * 3600, whole - start
        worst = max(worst, abs(took / expected - 1))
        off = 100 * (took / expected - 1)
        print(f"{name:28} forecast {expected:6.1f} s, took {took:6.1f} s: {off:+5.1f} %", flush=True)
    print(f"{len(RUNS)} runs, at most {100 * worst:.0f} % off")


if __name__ == "__main__":
    main()
