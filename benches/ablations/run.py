#!/usr/bin/env python3
"""Ablations behind the defaults: methods, ranks, modules and learning rates, on real rows and with several seeds.

    python3 benches/ablations/run.py MODEL_DIR TRAIN.jsonl TEST.jsonl [--jobs 2] [--minutes 60]
    python3 benches/ablations/run.py MODEL_DIR --task demo
    python3 benches/ablations/run.py --table

The rows of the first form are those of GSM8K: `train.jsonl` and `test.jsonl` of grade_school_math/data in the
repository openai/grade-school-math, which are not part of this repository and are verified by their hashes. Those of
the second are the demo's (`examples/data/habit.*.jsonl`).

Every setting is run with all seeds at the rate that is expected to be its best. Then the rate is searched with the
first seed: neighbors on the ladder of rates are run until the validation loss rises on both sides, and a better rate is
run with the other seeds too. Then come the default's other rates with all seeds, and the rates that the searches left
out. A seed draws the initial A and the order of rows, so that settings are compared seed by seed. Every run is added to
results.jsonl when it ends: after a stop the same command goes on. `--table` only writes README.md from what is there,
which every other call does at its end. Standard library only.
"""

import argparse
import concurrent.futures
import hashlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import typing

HERE = pathlib.Path(__file__).parent
DEMO = HERE.parent.parent / "examples" / "data"
DEFAULT = "LoRA, r 16, all linear layers"
# Flags of each setting, and the rate that is expected to be its best.
SETTINGS = {
    DEFAULT: ([], 2e-3),
    "LoRA, r 16, q_proj and v_proj": (["--lora-target-modules", "q_proj,v_proj"], 5e-3),
    "rsLoRA, r 16": (["--use-rslora", "true"], 1e-3),
    "LoRA, r 64": (["--lora-r", "64"], 2e-3),
    "rsLoRA, r 64": (["--lora-r", "64", "--use-rslora", "true"], 1e-3),
    "LoRA+, ratio 4": (["--loraplus-lr-ratio", "4"], 1e-3),
    "LoRA+, ratio 16": (["--loraplus-lr-ratio", "16"], 2e-4),
    "DoRA, r 16": (["--use-dora", "true"], 2e-3),
}
SEEDS = [1, 2, 3]
# The base alone, whose loss is found without a rate or a seed.
BASE = "no adapter"
# The trainer's own rate, with which the others are compared.
DEFAULT_RATE = 2e-4


class Task(typing.NamedTuple):
    title: str
    """Sentences of README.md about the rows and the runs."""
    about: list[str]
    settings: list[str]
    """The ladder that searches walk on, and those rates of it that are run for every setting."""
    rates: list[float]
    asked: list[float]
    validation_rows: int | None
    """Flags of training, and those that `eval` takes as well."""
    flags: list[str]
    rows: list[str]


TASKS = {
    "gsm8k": Task(
        "GSM8K",
        [
            "30 steps of packs of 512 tokens, drawn from `train.jsonl`, in bf16; the loss of the first 32 rows of",
            "`test.jsonl`. Rates on a ladder: 1e-4, 2e-4, 5e-4 and so on.",
        ],
        list(SETTINGS),
        [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2],
        [1e-4, 2e-4, 5e-4, 1e-3, 2e-3],
        32,
        ["--max-steps", "30"],
        ["--max-length", "512", "--compute", "bf16", "--prompt-column", "question", "--completion-column", "answer"],
    ),
    "demo": Task(
        "The demo's rows",
        [
            "One pass over `examples/data/habit.train.jsonl` (40 steps of packs of 256 tokens) in f32; the loss of",
            "`habit.validation.jsonl`. Rows of one habit, written for the demo. Recorded on 23 November 2026 by the",
            "trainer of that day.",
        ],
        [DEFAULT, "LoRA+, ratio 4", "LoRA+, ratio 16"],
        [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3],
        [],
        None,
        ["--num-train-epochs", "1"],
        ["--max-length", "256", "--compute", "f32"],
    ),
}
HASHES = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}


def run(args, task, setting, rate, seed):
    """One run's losses. `--save-steps 0` and `--report false` save time and change no value."""
    kind = TASKS[task]
    common = ["--json", "--device", "cpu", "--threads", args.threads, "--model", args.model, *kind.rows]
    with tempfile.TemporaryDirectory() as scratch:
        if setting == BASE:
            command = [args.binary, "eval", *common, "--data", args.validation]
        else:
            command = [args.binary, "train", *common, "--data", args.train, "--val-data", args.validation, *kind.flags]
            command += [*SETTINGS[setting][0], "--learning-rate", rate, "--seed", seed]
            command += ["--save-steps", 0, "--report", "false", "--output-dir", f"{scratch}/run"]
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{done.stderr}\nended with {done.returncode}")
    answer = json.loads(done.stdout)
    found = {"task": task, "setting": setting, "rate": rate, "seed": seed}
    if setting == BASE:
        return found | {"eval_loss": answer["loss"]}
    return found | {name: answer[name] for name in ("steps", "train_loss", "eval_loss")}


class Results:
    """The results in results.jsonl. `loss` makes a run that is missing, and adds it."""

    def __init__(self, args):
        self.args, self.path, self.lock = args, args.out / "results.jsonl", threading.Lock()
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.runs = {key(one): one for one in map(json.loads, lines)}
        self.end = time.monotonic() + 60 * args.minutes

    def loss(self, task, setting, rate, seed):
        wanted = (task, setting, rate, seed)
        if wanted not in self.runs:
            if time.monotonic() > self.end:
                raise TimeoutError
            begun = time.monotonic()
            found = run(self.args, *wanted)
            with self.lock:
                self.runs[wanted] = found
                with self.path.open("a") as out:
                    out.write(json.dumps(found) + "\n")
            print(f"{time.strftime('%H:%M:%S')} {time.monotonic() - begun:.0f} s {found}", file=sys.stderr, flush=True)
        return self.runs[wanted]["eval_loss"]


def key(one):
    return one["task"], one["setting"], one["rate"], one["seed"]


def start(task, setting):
    """The rate of the task's ladder that is nearest to the expected one."""
    return min(TASKS[task].rates, key=lambda rate: abs(rate / SETTINGS[setting][1] - 1))


def search(results, task, setting):
    """Walks the ladder with the first seed until the loss rises on both sides, then runs the other seeds."""
    rates = TASKS[task].rates
    at = rates.index(start(task, setting))
    for step in (1, -1):
        while 0 <= at + step < len(rates):
            here, there = (results.loss(task, setting, rates[i], SEEDS[0]) for i in (at, at + step))
            if there >= here:
                break
            at += step
    other_seeds(results, task, setting)


def other_seeds(results, task, setting):
    rate = best_rate(results.runs, task, setting)
    for seed in SEEDS[1:]:
        results.loss(task, setting, rate, seed)


def first_losses(runs, task, setting):
    """Losses of the first seed by rate."""
    return {run[2]: runs[run]["eval_loss"] for run in sorted(runs) if run[:2] == (task, setting) and run[3] == SEEDS[0]}


def best_rate(runs, task, setting):
    first = first_losses(runs, task, setting)
    return min(first, key=first.get)


def bracketed(runs, task, setting):
    """True if the rates on both sides of the best one were run."""
    first, rates = first_losses(runs, task, setting), TASKS[task].rates
    at = rates.index(best_rate(runs, task, setting))
    return all(rate in first for rate in rates[max(at - 1, 0) : at + 2])


def work(args, results):
    """All runs of the task, the most telling first."""
    task, kind = args.task, TASKS[args.task]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:

        def each(function, arguments):
            list(pool.map(lambda one: function(*one), arguments))

        results.loss(task, BASE, 0, 0)
        each(results.loss, [(task, s, start(task, s), seed) for s in kind.settings for seed in SEEDS])
        each(search, [(results, task, s) for s in kind.settings])
        each(results.loss, [(task, DEFAULT, rate, seed) for rate in kind.asked for seed in SEEDS])
        each(results.loss, [(task, s, rate, SEEDS[0]) for s in kind.settings for rate in kind.asked])
        each(other_seeds, [(results, task, s) for s in kind.settings])


def seeds_of(runs, task, setting, rate):
    return {seed: runs[task, setting, rate, seed]["eval_loss"] for seed in SEEDS if (task, setting, rate, seed) in runs}


def spread(losses):
    """Mean and standard deviation of the seeds; of one seed its loss alone."""
    values = list(losses.values())
    text = f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")
    return text if len(values) == len(SEEDS) else f"{text} ({len(values)} of {len(SEEDS)} seeds)"


def paired(losses, others):
    """Mean and standard error of the differences, seed by seed, and what they say."""
    differences = [losses[seed] - others[seed] for seed in losses if seed in others]
    if len(differences) < 2:
        return "–", "too few seeds"
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    verdict = "no difference" if abs(mean) <= 2 * error else "wins" if mean < 0 else "loses"
    return f"{mean:+.4f} ± {error:.4f}", verdict


def rows_of_table(runs, name):
    """Lines of README.md about one task."""
    task = TASKS[name]
    settings = [setting for setting in task.settings if first_losses(runs, name, setting)]
    if not settings:
        return []
    lines = ["", f"## {task.title}", "", *task.about]
    if (name, BASE, 0, 0) in runs:
        lines += [f"Without an adapter the loss is {runs[name, BASE, 0, 0]['eval_loss']:.4f}."]
    lines += ["", "| setting | rate | validation loss | difference from the default, paired | |"]
    lines += ["|---|---|---|---|---|"]
    losses = {s: seeds_of(runs, name, s, best_rate(runs, name, s)) for s in settings}
    for s in settings:
        difference, verdict = ("", "the default") if s == DEFAULT else paired(losses[s], losses.get(DEFAULT, {}))
        searched = bracketed(runs, name, s)
        rate = f"{best_rate(runs, name, s):g}" + ("" if searched else ", not searched")
        verdict += "" if searched else " at this rate"
        lines.append(f"| {s} | {rate} | {spread(losses[s])} | {difference} | {verdict} |")
    rates = sorted({rate for s in settings for rate in first_losses(runs, name, s)})
    lines += ["", "Loss of the first seed at every rate that was run:", ""]
    lines += ["| setting | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for s in settings:
        first = first_losses(runs, name, s)
        cells = [f"{first[rate]:.4f}" if rate in first else "" for rate in rates]
        best = rates.index(best_rate(runs, name, s))
        cells[best] = f"**{cells[best]}**"
        lines.append(f"| {s} | " + " | ".join(cells) + " |")
    asked = [rate for rate in task.asked if len(seeds_of(runs, name, DEFAULT, rate)) > 1]
    if DEFAULT_RATE in asked:
        lines += ["", f"Rates of the default, beside {DEFAULT_RATE:g}, which a run takes where none is given:", ""]
        lines += ["| rate | validation loss | difference, paired | |", "|---|---|---|---|"]
        for rate in asked:
            found, own = (seeds_of(runs, name, DEFAULT, r) for r in (rate, DEFAULT_RATE))
            difference, verdict = ("", "the default") if rate == DEFAULT_RATE else paired(found, own)
            lines.append(f"| {rate:g} | {spread(found)} | {difference} | {verdict} |")
    return lines


def table(runs):
    lines = [
        "# Ablations",
        "",
        "SmolLM2-135M-Instruct in NF4; alpha 32, a cosine schedule and 8-bit AdamW, the trainer's defaults. A setting",
        "differs from the default in what its name says. Its rate, that of A, is searched with the first seed, and the",
        f"best one is run with all {len(SEEDS)}. A seed draws the initial A and the rows with their order, so that",
        "settings are compared seed by seed. Validation losses are means over seeds with the standard deviation,",
        "differences are means with the standard error. A setting wins or loses where its mean difference is more than",
        "two standard errors from zero. With three seeds that is a weak test: two equal settings would come out as",
        "different one time in five. The first seed, by which rates are chosen, flatters every setting whose rate was",
        "searched, the default too. A rate that is not searched is the one that was expected to be best: another may",
        "be better. One small model, short runs: what wins here need not win in longer ones.",
        "",
        "Made by `run.py` beside this file from `results.jsonl`.",
    ]
    for name in TASKS:
        lines += rows_of_table(runs, name)
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("train", nargs="?", type=pathlib.Path)
    parser.add_argument("test", nargs="?", type=pathlib.Path)
    parser.add_argument("--task", choices=TASKS, default="gsm8k")
    parser.add_argument("--table", action="store_true", help="only write README.md from results.jsonl")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--jobs", type=int, default=1, help="runs at one time")
    parser.add_argument("--threads", type=int, default=1, help="of each run; they change no value")
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    results = Results(args)
    with tempfile.TemporaryDirectory() as scratch:
        args.validation = pathlib.Path(scratch) / "validation.jsonl"
        try:
            if not args.table:
                rows_of(parser, args)
                work(args, results)
        except TimeoutError:
            print("the time is up; the same command goes on", file=sys.stderr)
    text = table(results.runs)
    (args.out / "README.md").write_text(text)
    print(text)


def rows_of(parser, args):
    """Sets `train`, and writes the validation rows."""
    if args.model is None:
        parser.error("expected the directory of the model")
    if args.task == "demo":
        args.train, args.test = (DEMO / f"habit.{name}.jsonl" for name in ("train", "validation"))
    elif args.test is None:
        parser.error("expected the files train.jsonl and test.jsonl of GSM8K")
    else:
        for name, expected in HASHES.items():
            found = hashlib.sha256(getattr(args, name).read_bytes()).hexdigest()
            if found != expected:
                parser.error(f"{getattr(args, name)}: found the hash {found}, expected {expected}, which GSM8K's has")
    lines = args.test.read_text().splitlines(keepends=True)
    args.validation.write_text("".join(lines[: TASKS[args.task].validation_rows]))


if __name__ == "__main__":
    main()
