"""Five training steps of the tiny models of family_files.py, and NF4 both ways.

    python family_runs.py --binary target/release/qlora-train [FAMILY …]

FAMILY/steps.safetensors: the loss and the gradient's norm of each of five AdamW steps on the rows of
expected.safetensors, from its values of A and B, and the values after the last.

FAMILY/nf4/: the model as transformers and bitsandbytes save it in NF4, and its logits. bitsandbytes dequantizes each
weight, and the model is computed in f32 with them.

nf4.json: for each family the SHA-256 of the weight file that `qlora-train quantize` writes. transformers and
bitsandbytes loaded it, and check_quantized.py compared each tensor with the original.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import tempfile

import bitsandbytes as bnb
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import check_quantized
from family_files import ALPHA, APART, DOCUMENTS, FAMILIES, HERE, RANK
from nf4_files import dequantize

STEPS, RATE = 5, 5e-3
# Two with double quantization, one of them with fused tensors.
DOUBLE_QUANT = {"phi3", "gemma3"}


def load(directory):
    """A model in f32. One that was cast to bf16 has rotary frequencies that were cast too."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def rows(family, expected):
    """The documents of a family as it was asked for its gradients, and how many tokens are learned."""
    ids, labels = expected["input_ids"][None], expected["labels"][None]
    documents = DOCUMENTS.get(family) or [ids.shape[1]]
    if family in APART:
        parts = zip(ids.split(documents, dim=1), labels.split(documents, dim=1))
        found = [dict(input_ids=part, labels=targets) for part, targets in parts]
    else:
        positions = torch.cat([torch.arange(n) for n in documents])[None]
        found = [dict(input_ids=ids, labels=labels, position_ids=positions)]
    return found, int((labels >= 0).sum())


def steps(directory, family):
    expected = load_file(directory / "expected.safetensors")
    lora = peft.get_peft_model(
        load(directory),
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trained = {name.replace(".default", ""): p for name, p in lora.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(expected[f"value.{name}"])
    batch, supervised = rows(family, expected)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sum((row["labels"] >= 0).sum() / supervised * lora(use_cache=False, **row).loss for row in batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0))
        losses.append(loss.detach())
        optimizer.step()
    assert abs(losses[0] - expected["loss"][0]) < 1e-5 * losses[0], "not the rows of expected.safetensors"
    assert losses[-1] < losses[0], losses
    final = {f"final.{name}": parameter.detach().contiguous() for name, parameter in trained.items()}
    save_file({"losses": torch.stack(losses), "gradient_norms": torch.stack(norms), **final}, directory / "steps.safetensors")
    print(f"{family}: losses {[round(loss.item(), 4) for loss in losses]}")


def theirs(directory, family):
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="bfloat16",
        bnb_4bit_use_double_quant=family in DOUBLE_QUANT,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    out = directory / "nf4"
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    # A second program reads it back.
    read, plain = check_quantized.load(out), load(directory)
    weights = dict(plain.named_parameters())
    count = 0
    with torch.no_grad():
        for name, module in read.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                weights[f"{name}.weight"].copy_(dequantize(module.weight.data, module.weight.quant_state, torch.float32))
                count += 1
        expected = load_file(directory / "expected.safetensors")
        logits = []
        for row in rows(family, expected)[0]:
            row.pop("labels")
            logits.append(plain(use_cache=False, **row).logits[0])
    logits = torch.cat(logits)
    apart = (logits - expected["logits"]).abs().max() / expected["logits"].abs().max()
    assert count and apart > 1e-3, (count, apart)
    save_file({"logits": logits.contiguous()}, out / "logits.safetensors")
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{family}: {count} weights in NF4, logits {apart:.1e} from those of the model, {size} bytes")


def ours(directory, family, binary):
    with tempfile.TemporaryDirectory() as scratch:
        original, out = pathlib.Path(scratch) / "original", pathlib.Path(scratch) / "quantized"
        original.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(directory / name, original)
        subprocess.run([binary, "quantize", "--model", original, "--output", out], check=True)
        in_nf4, same = check_quantized.compare(original, out)
        print(f"{family}: {in_nf4} weights in NF4 by the rules, {same} tensors as they were")
        return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.disable_progress_bar()
    record = HERE / "nf4.json"
    hashes = json.loads(record.read_text()) if record.exists() else {}
    for family in arguments.families or FAMILIES:
        directory = HERE / family
        steps(directory, family)
        theirs(directory, family)
        hashes[family] = ours(directory, family, arguments.binary)
    record.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
