#!/usr/bin/env python3
"""The demo's result in bf16 beside f32: the runs of `cargo xtask demo`, by several seeds.

    python3 benches/compute/demo.py MODEL_DIR [--seeds 1 2 3] [--binary target/release/qlora-train]

For every seed two runs with the demo's settings that differ in `compute` alone. After each the loss of the validation
rows, computed in f32, and the answers to the demo's questions that have the habit it teaches. Ends with an error where a
run in bf16 lacks the habit, or where the two losses of a seed are further apart than those of f32 by any two seeds.
Standard library only. Writes demo.json and demo.md.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile

from run import COMPUTE, HERE, answer

ROWS = HERE.resolve().parent.parent / "examples" / "data"
SETTINGS = ["--lora-r", 16, "--lora-target-modules", "all-linear", "--learning-rate", "5e-4", "--num-train-epochs", 3, "--max-length", 512]
# One sentence, then the line that names a topic.
HABIT = re.compile(r"(?:(?!\. ).)*\.\s*\nTopic: [a-z]+")
AT_LEAST = 7


def run(args, questions, seed, compute):
    common = ["--json", "--device", "cpu", "--threads", args.threads, "--model", args.model]
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "run"
        command = [args.binary, "train", *common, "--compute", compute, "--seed", seed, "--data", ROWS / "habit.train.jsonl"]
        trained = answer([*command, *SETTINGS, "--output-dir", out])
        command = [args.binary, "eval", *common, "--compute", "f32", "--adapter", out]
        found = answer([*command, "--data", ROWS / "habit.validation.jsonl"])
        command = [args.binary, "generate", *common, "--compute", compute, "--adapter", out, "--max-new-tokens", 40]
        answers = answer([*command, *(part for question in questions for part in ("--prompt", question))])
    habits = sum(bool(HABIT.fullmatch(given["text"].strip())) for given in answers["completions"])
    return {
        "seed": seed,
        "compute": compute,
        "steps": trained["steps"],
        "train_loss": trained["train_loss"],
        "eval_loss": found["loss"],
        "habits": habits,
    }


def table(results, seeds, questions):
    of = {(found["seed"], found["compute"]): found for found in results}
    lines = [
        "# The demo in bf16 beside f32",
        "",
        f"The settings of `cargo xtask demo` ({results[0]['steps']} steps of 512 tokens) by several seeds: the loss of the validation rows in f32, and how",
        f"many of {questions} answers have the habit that it teaches. Made by `demo.py` beside this file, which says how.",
        "",
        "| seed | validation loss, f32 | bf16 | answers with the habit, f32 | bf16 |",
        "|---|---|---|---|---|",
    ]
    for seed in seeds:
        exact, rounded = (of[seed, compute] for compute in COMPUTE)
        losses = f"{exact['eval_loss']:.4f} | {rounded['eval_loss']:.4f}"
        lines.append(f"| {seed} | {losses} | {exact['habits']} | {rounded['habits']} |")
    exact = [of[seed, "f32"]["eval_loss"] for seed in seeds]
    apart = max(abs(of[seed, "bf16"]["eval_loss"] - of[seed, "f32"]["eval_loss"]) for seed in seeds)
    between = max(exact) - min(exact)
    lines += ["", f"bf16 is at most {apart:.4f} from f32 by the same seed; f32 by two seeds is up to {between:.4f} apart."]
    return "\n".join(lines) + "\n", apart, between


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="which change no value")
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    questions = (ROWS / "habit.questions.txt").read_text().splitlines()
    results = []
    for seed in args.seeds:
        for compute in COMPUTE:
            results.append(run(args, questions, seed, compute))
            print(results[-1], file=sys.stderr, flush=True)
    text, apart, between = table(results, args.seeds, len(questions))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "demo.md").write_text(text)
    print(text)
    lacking = [found for found in results if found["compute"] == "bf16" and found["habits"] < AT_LEAST]
    if lacking or apart > between:
        sys.exit(f"without the habit: {lacking}; {apart} from f32, {between} between seeds")


if __name__ == "__main__":
    main()
