#!/usr/bin/env python3
"""Quality of bf16 on a CPU: the same runs with `compute: f32` and `compute: bf16`, on real rows.

    python3 benches/compute/run.py MODEL_DIR TRAIN.jsonl VALIDATION.jsonl [--prompt-column question] [--completion-column answer]

For every seed two runs of --steps steps that differ in `compute` alone, then the loss of the first --validation-rows rows
of VALIDATION.jsonl, which is computed in f32 for both. Made for the rows of GSM8K (`train.jsonl` and `test.jsonl` of the
repository openai/grade-school-math), which are not part of this repository. Ends with an error where a loss in bf16 is
more than 0.5% from f32's. Standard library only. Writes results.json and README.md.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
COMPUTE = ["f32", "bf16"]
LIMIT = 0.005
# Rows of a step.
ROWS = 2


def answer(command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{done.stdout}{done.stderr}\nended with {done.returncode}")
    return json.loads(done.stdout)


def run(args, seed, compute, validation):
    columns = ["--prompt-column", args.prompt_column, "--completion-column", args.completion_column]
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "run"
        command = [args.binary, "train", "--json", "--device", "cpu", "--model", args.model, "--data", args.train]
        command += [*columns, "--output-dir", out, "--compute", compute, "--seed", seed, "--max-steps", args.steps]
        command += ["--per-device-train-batch-size", ROWS, "--gradient-accumulation-steps", 1, "--learning-rate", args.rate]
        trained = answer([*command, "--max-length", 512, "--warmup-ratio", 0.03, "--lr-scheduler-type", "cosine"])
        command = [args.binary, "eval", "--json", "--device", "cpu", "--compute", "f32", "--model", args.model]
        found = answer([*command, "--adapter", out, "--data", validation, *columns, "--max-length", 512])
    return {"seed": seed, "compute": compute, "train_loss": trained["train_loss"], "eval_loss": found["loss"]}


def table(args, results):
    loss = {(found["seed"], found["compute"]): found for found in results}
    lines = [
        "# bf16 beside f32 on a CPU",
        "",
        f"{args.steps} steps of {ROWS} rows of {args.train.name}, SmolLM2-135M-Instruct in NF4, r 16 on all linear layers, rate",
        f"{args.rate:g}; then the loss of {args.validation_rows} rows of {args.validation.name} in f32. Rows: {args.rows}.",
        "Made by `run.py` beside this file, which says how.",
        "",
        "| seed | training loss, f32 | bf16 | validation loss, f32 | bf16 | difference |",
        "|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for seed in args.seeds:
        exact, rounded = (loss[seed, compute] for compute in COMPUTE)
        difference = rounded["eval_loss"] / exact["eval_loss"] - 1.0
        worst = max(worst, abs(difference))
        trained = f"{exact['train_loss']:.4f} | {rounded['train_loss']:.4f}"
        lines.append(
            f"| {seed} | {trained} | {exact['eval_loss']:.4f} | {rounded['eval_loss']:.4f} | {100 * difference:+.3f}% |"
        )
    return "\n".join(lines) + "\n", worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("validation", type=pathlib.Path)
    parser.add_argument("--prompt-column", default="question")
    parser.add_argument("--completion-column", default="answer")
    parser.add_argument("--rows", default="GSM8K", help="what the table calls the rows")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--validation-rows", type=int, default=100)
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        validation = pathlib.Path(scratch) / "validation.jsonl"
        lines = args.validation.read_text().splitlines(keepends=True)
        validation.write_text("".join(lines[: args.validation_rows]))
        for seed in args.seeds:
            for compute in COMPUTE:
                results.append(run(args, seed, compute, validation))
                print(results[-1], file=sys.stderr, flush=True)
    text, worst = table(args, results)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "README.md").write_text(text)
    print(text)
    if worst > LIMIT:
        sys.exit(f"bf16 is {100 * worst:.2f}% from f32, expected {100 * LIMIT:g}% at most")


if __name__ == "__main__":
    main()
