"""Loads an adapter in PEFT over its base in f32 and compares the logits with those that the trainer computed.

usage: check_adapter.py MODEL_DIR ADAPTER_DIR LOGITS.safetensors

MODEL_DIR      a Hugging Face directory; it is not quantized here
ADAPTER_DIR    adapter_config.json and adapter_model.safetensors
LOGITS         for rows N = 0, 1, ...: `input_ids.N` int64 [T] and `logits.N` f32 [T, vocab], same base and adapter

Ends with status 1 if any logit differs by more than 1e-4 * max(1, largest |logit| of the row), or if PEFT did not take
every tensor of the adapter as it stands in the file.
"""

import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file

TOLERANCE = 1e-4


def load(model_dir, adapter_dir):
    base = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, adapter_dir).eval()
    on_disk = load_file(pathlib.Path(adapter_dir) / "adapter_model.safetensors")
    taken = peft.get_peft_model_state_dict(model)
    if on_disk.keys() != taken.keys():
        sys.exit(f"{adapter_dir}: PEFT and the file disagree about tensors: {sorted(on_disk.keys() ^ taken.keys())}")
    for name, tensor in on_disk.items():
        if not torch.equal(tensor.to(torch.float32), taken[name].to(torch.float32)):
            sys.exit(f"{adapter_dir}: PEFT holds another {name} than the file")
    if not any("lora_B" in n and t.abs().max() > 0 for n, t in on_disk.items()):
        sys.exit(f"{adapter_dir}: every lora_B is zero, so this adapter changes nothing and the check would prove nothing")
    print(f"adapter: {len(on_disk)} tensors, peft {peft.__version__}, transformers {transformers.__version__}")
    return model


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    torch.set_num_threads(2)
    model_dir, adapter_dir, logits_file = sys.argv[1:]
    expected = load_file(logits_file)
    count = sum(name.startswith("input_ids.") for name in expected)
    if count == 0 or expected.keys() != {f"{part}.{i}" for part in ("input_ids", "logits") for i in range(count)}:
        sys.exit(f"{logits_file}: expected input_ids.N and logits.N for N = 0, 1, ..., found {sorted(expected)}")
    model = load(model_dir, adapter_dir)
    good = True
    for i in range(count):
        ids, ours = expected[f"input_ids.{i}"], expected[f"logits.{i}"]
        with torch.no_grad():
            theirs = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
            with model.disable_adapter():
                without = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0]
        if ours.shape != theirs.shape:
            sys.exit(f"{logits_file}: logits.{i} has shape {list(ours.shape)}, the model gives {list(theirs.shape)}")
        difference = (ours - theirs).abs().max().item()
        limit = TOLERANCE * max(1.0, theirs.abs().max().item())
        effect = (theirs - without).abs().max().item()
        same = difference <= limit  # false for NaN too
        good = good and same
        print(
            f"row {i}: {len(ids)} tokens, largest difference {difference:.3e}, allowed {limit:.3e}, "
            f"the adapter itself moves logits by up to {effect:.3e}: {'ok' if same else 'DIFFERENT'}"
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
