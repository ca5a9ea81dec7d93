#!/usr/bin/env python3
"""Rows per second and memory of reading data: qlora-train beside datasets + tokenizers, alternating, on one machine.

    python benches/peers/rows.py MODEL_DIR [--rows 100000] [--kind text|chat] [--threads 2] [--repeats 3]

MODEL_DIR holds a tokenizer, and the config.json by which `qlora-train plan` reads rows as a run does, without training.
Rows of made-up words are written as JSON Lines and tokenized. Of ours three starts are measured: one that keeps the rows
in memory, a first one that keeps them in a cache (`--tokenized-cache`), and a second one that takes them from there. Of
the peer two: `load_dataset` and `map` into an empty cache, and the same again in a new process; by --threads processes
(`num_proc`) and by as many threads of the tokenizer. `apply_chat_template` writes the text of chat rows; the peer finds
no mask of what is learned, ours does. Totals of tokens are compared, so that all are known to do the same work.

A figure is the median over --repeats, which alternate between the variants, with the smallest and the largest beside it.
Seconds are those of the whole process. Memory is the largest sum of RssAnon (resident memory without file pages) over the
process and its children. Files have been read once before, so that the disk does not count. `plan of one row` is what a
start of ours takes beside its rows.

Needs the packages datasets and transformers. Run it on a machine that does nothing else. `--smoke` proves that it works:
few rows, no record.
"""

import argparse
import datetime
import importlib.metadata
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

from compare import HERE, family, processor, write_record

# The share by which totals of tokens may differ: a chat template may end a row otherwise than its last turn.
TOKENS_TOLERANCE = 0.02
WORDS_PER_ROW = (20, 260)


def words(generator, count):
    """Made-up words, the first of them the most frequent, as in a language."""
    letters = "eeeeaaooiinnttssrrlldduchmpgbfyvk"
    known = ["".join(generator.choices(letters, k=generator.randint(1, 11))) for _ in range(count)]
    return known, [1.0 / (rank + 3) for rank in range(count)]


def write_rows(path, rows, kind):
    generator = random.Random(7)
    known, weights = words(generator, 20_000)
    with path.open("w") as out:
        for _ in range(rows):
            text = " ".join(generator.choices(known, weights, k=generator.randint(*WORDS_PER_ROW)))
            if kind == "text":
                row = {"text": text}
            else:
                middle = text.index(" ", len(text) // 3)
                said = [{"role": "user", "content": text[:middle]}, {"role": "assistant", "content": text[middle + 1 :]}]
                row = {"messages": said}
            out.write(json.dumps(row) + "\n")


def family(pid):
    """The process and those below it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += family(int(child))
    return found


def anonymous(pid):
    total = 0
    for one in family(pid):
        try:
            status = pathlib.Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue  # It has just ended.
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        total += int(found[1]) * 1024 if found else 0
    return total


def measured(command, environment=None):
    """Seconds, the largest memory in bytes, and what was printed."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    largest = 0

    def watch():
        nonlocal largest
        while process.poll() is None:
            try:
                largest = max(largest, anonymous(process.pid))
            except OSError:
                pass
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    seconds = time.perf_counter() - begun
    watcher.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(str(c) for c in command)}\n{err}\nended with {process.returncode}")
    return {"seconds": seconds, "memory": largest}, out, err


def ours(args, rows, cache=None):
    command = [args.binary, "plan", "--json", "--device", "cpu", "--threads", args.threads, "--model", args.model]
    command += ["--data", rows, "--max-length", args.max_length]
    command += ["--tokenized-cache", cache] if cache else []
    run, _, err = measured(command)
    found = re.search(r"([\d,]+) rows?, ([\d,]+) tokens?, ", err)
    if not found:
        sys.exit(f"found no line that counts rows and tokens in\n{err}")
    run["rows"], run["tokens"] = (int(number.replace(",", "")) for number in found.groups())
    return run


def theirs(args, rows, cache, processes):
    """In a process of its own, as ours."""
    settings = {"model": str(args.model), "rows": str(rows), "cache": str(cache), "kind": args.kind}
    settings |= {"processes": args.threads if processes else None, "max_length": args.max_length}
    environment = {
        "HF_DATASETS_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false" if processes else "true",
        "RAYON_NUM_THREADS": str(args.threads),
    }
    program = f"import sys; sys.path.insert(0, {str(HERE)!r}); import rows; rows.peer({json.dumps(settings)!r})"
    run, out, _ = measured([sys.executable, "-c", program], environment)
    # Tokens are counted by another process, once the time is taken.
    return {**run, **json.loads(out.splitlines()[-1])}


def dataset_of(settings):
    import datasets
    import transformers

    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings["model"])
    rows = datasets.load_dataset("json", data_files=settings["rows"], split="train", cache_dir=settings["cache"])

    def tokenize(batch):
        if settings["kind"] == "text":
            ids = [one + [tokenizer.eos_token_id] for one in tokenizer(batch["text"])["input_ids"]]
        else:
            texts = [tokenizer.apply_chat_template(said, tokenize=False) for said in batch["messages"]]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    # Named by hand: the hash of a tokenizer changes once it was used, and the cache would not be found.
    return rows.map(
        tokenize,
        batched=True,
        num_proc=settings["processes"],
        remove_columns=rows.column_names,
        new_fingerprint="tokenized",
    )


def peer(settings):
    """Prints what one run comes to: its rows, and the first of them, which is read as a trainer would."""
    rows = dataset_of(json.loads(settings))
    print(json.dumps({"rows": len(rows), "first": len(rows[0]["input_ids"])}))


def count_tokens(settings):
    rows = dataset_of(json.loads(settings)).with_format("arrow")
    print(sum(len(ids) for batch in rows.iter(1000) for ids in batch["input_ids"]))


def tokens_of_peer(args, rows, cache):
    settings = {"model": str(args.model), "rows": str(rows), "cache": str(cache), "kind": args.kind}
    settings |= {"processes": None, "max_length": args.max_length}
    program = f"import sys; sys.path.insert(0, {str(HERE)!r}); import rows; rows.count_tokens({json.dumps(settings)!r})"
    environment = {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    _, out, _ = measured([sys.executable, "-c", program], environment)
    return int(out.splitlines()[-1])


def repeat(args, rows, runs):
    """One run of each variant, every cache empty at first."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        scratch = pathlib.Path(scratch)

        def add(name, run):
            runs.setdefault(name, []).append(run)
            print(name, run, file=sys.stderr, flush=True)

        add("ours, in memory", ours(args, rows))
        add("ours, first start", ours(args, rows, scratch / "ours"))
        add("ours, second start", ours(args, rows, scratch / "ours"))
        for processes, how in [(True, "processes"), (False, "threads")]:
            cache = scratch / how
            add(f"datasets, {how}, first start", theirs(args, rows, cache, processes))
            add(f"datasets, {how}, second start", theirs(args, rows, cache, processes))
        return runs["ours, second start"][-1]["tokens"], tokens_of_peer(args, rows, scratch / "threads")


def summary(runs, rows):
    seconds = sorted(run["seconds"] for run in runs)
    return {
        "seconds": round(statistics.median(seconds), 3),
        "seconds_min": round(seconds[0], 3),
        "seconds_max": round(seconds[-1], 3),
        "rows_per_second": round(rows / statistics.median(seconds)),
        "memory_bytes": max(run["memory"] for run in runs),
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="directory with tokenizer and config.json of the model")
    parser.add_argument("--binary", default="target/release/qlora-train")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kind", default="text", choices=["text", "chat"])
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=pathlib.Path, help="where rows and caches are written, instead of /tmp")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "records")
    parser.add_argument("--smoke", action="store_true", help="few rows; writes no record")
    args = parser.parse_args()
    if args.rows < 1 or args.repeats < 1 or args.threads < 1:
        parser.error("expected 1 or more --rows, --repeats and --threads")
    if args.smoke:
        args.rows, args.repeats = min(args.rows, 200), 1
    return args


def main():
    args = arguments()
    runs = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        rows, one = (pathlib.Path(scratch) / name for name in ("rows.jsonl", "one.jsonl"))
        write_rows(rows, args.rows, args.kind)
        write_rows(one, 1, args.kind)
        rows.read_bytes()
        for _ in range(args.repeats):
            runs.setdefault("plan of one row", []).append(ours(args, one))
            tokens, theirs_tokens = repeat(args, rows, runs)
        size = rows.stat().st_size
    if abs(tokens - theirs_tokens) > TOKENS_TOLERANCE * theirs_tokens:
        sys.exit(f"ours has {tokens} tokens, the peer {theirs_tokens}: they do not do the same work")
    names = ["datasets", "transformers", "tokenizers", "pyarrow"]
    result = {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "family": family(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load_average_after": round(os.getloadavg()[0], 2),
        "model": pathlib.Path(args.model).name,
        "kind": args.kind,
        "rows": args.rows,
        "bytes": size,
        "tokens": tokens,
        "tokens_of_peer": theirs_tokens,
        "max_length": args.max_length,
        "repeats": args.repeats,
        "versions": {**{name: importlib.metadata.version(name) for name in names}, "python": platform.python_version()},
        "variants": {name: summary(found, 1 if "one row" in name else args.rows) for name, found in runs.items()},
    }
    for name, found in result["variants"].items():
        print(
            f"{name:<34}{found['seconds']:>9.2f} s ({found['seconds_min']:.2f} to {found['seconds_max']:.2f}), "
            f"{found['rows_per_second']:>9} rows/s, {found['memory_bytes'] / 1e6:>8.1f} MB"
        )
    if args.smoke:
        return print("smoke: no record written")
    write_record(args.out, result, "rows", args.kind, args.rows)


if __name__ == "__main__":
    main()
