#!/usr/bin/env python3
"""LoRA+ ablation on the demo's task: ratio 1, 4 and 16, three seeds, each at its best base rate.

    python3 benches/loraplus/run.py MODEL_DIR [--binary target/release/qlora-train] [--out benches/loraplus]

For every ratio, base rates are doubled and halved with the first seed until the validation loss rises on both sides; the
best one is run with the other seeds. One pass over examples/data/habit.train.jsonl, then the loss of habit.validation.jsonl. Standard library
only. Writes results.json (every run, resumable) and README.md (the table).
"""

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import tempfile

HERE = pathlib.Path(__file__).parent
DATA = HERE.parent.parent / "examples" / "data"
# Ratio and the base rate that the search starts from.
RATIOS = {1: 8e-4, 4: 8e-4, 16: 4e-4}
SEEDS = [1, 2, 3]


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def run(args, ratio, rate, seed):
    with tempfile.TemporaryDirectory() as scratch:
        command = [args.binary, "train", "--json", "--device", "cpu", "--model", args.model]
        command += ["--data", DATA / "habit.train.jsonl", "--val-data", DATA / "habit.validation.jsonl"]
        command += ["--output-dir", f"{scratch}/run", "--loraplus-lr-ratio", str(ratio), "--learning-rate", str(rate)]
        command += ["--seed", str(seed), "--num-train-epochs", "1", "--max-length", "256"]
        done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        answer = json.loads(done.stdout)
    return {"ratio": ratio, "rate": rate, "seed": seed, **{k: answer[k] for k in ("steps", "train_loss", "eval_loss")}}


def table(results):
    lines = [
        "# LoRA+ ablation",
        "",
        "Validation loss of the demo's task (`examples/data/habit.*.jsonl`) after one pass, SmolLM2-135M-Instruct in NF4,",
        "r 16, alpha 32, all linear layers, cosine schedule. Every base rate with the first seed, the best one with",
        f"three. Made by `benches/loraplus/run.py` on {processor()}.",
        "",
        "| ratio | base rates tried (first seed) | best | validation loss, mean of 3 seeds | standard deviation |",
        "|---|---|---|---|---|",
    ]
    for ratio in RATIOS:
        of_ratio = [r for r in results if r["ratio"] == ratio]
        first = {r["rate"]: r["eval_loss"] for r in of_ratio if r["seed"] == SEEDS[0]}
        best = min(first, key=first.get)
        losses = [r["eval_loss"] for r in of_ratio if r["rate"] == best]
        tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in sorted(first.items()))
        spread = statistics.stdev(losses) if len(losses) > 1 else float("nan")
        lines.append(f"| {ratio} | {tried} | {best:g} | {statistics.mean(losses):.4f} | {spread:.4f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    path = args.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else []
    done = {(r["ratio"], r["rate"], r["seed"]) for r in results}

    def loss(ratio, rate, seed):
        if (ratio, rate, seed) not in done:
            results.append(run(args, ratio, rate, seed))
            done.add((ratio, rate, seed))
            print(results[-1], flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
        return next(r["eval_loss"] for r in results if (r["ratio"], r["rate"], r["seed"]) == (ratio, rate, seed))

    for ratio, best in RATIOS.items():
        for factor in (2.0, 0.5):
            while loss(ratio, best * factor, SEEDS[0]) < loss(ratio, best, SEEDS[0]):
                best *= factor
        for seed in SEEDS[1:]:
            loss(ratio, best, seed)
    (args.out / "README.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
