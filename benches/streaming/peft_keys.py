#!/usr/bin/env python3
"""PEFT's view of an adapter whose base model is too large to be loaded.

    python3 benches/streaming/peft_keys.py MODEL ADAPTER

Builds the model of MODEL's config.json without memory for its weights (torch's `meta` device), lets PEFT put ADAPTER on it,
and ends with an error unless the names and shapes that PEFT expects are those of adapter_model.safetensors. Prints one line
of JSON. Needs torch, transformers and peft.
"""

import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors.torch import load_file


def main():
    model, adapter = map(pathlib.Path, sys.argv[1:3])
    config = json.loads((model / "config.json").read_text())
    config.pop("quantization_config", None)
    config = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = peft.PeftModel.from_pretrained(base, str(adapter), low_cpu_mem_usage=True)
    held = peft.get_peft_model_state_dict(found)
    file = load_file(adapter / "adapter_model.safetensors")
    missing, unexpected = sorted(held.keys() - file.keys()), sorted(file.keys() - held.keys())
    if missing or unexpected:
        sys.exit(f"PEFT expects {missing[:5]} and does not know {unexpected[:5]}")
    for name, tensor in file.items():
        if held[name].shape != tensor.shape:
            sys.exit(f"{name}: {tuple(tensor.shape)}, and PEFT wants {tuple(held[name].shape)}")
    layers = {name.split(".layers.")[1].split(".")[0] for name in file}
    print(json.dumps({"tensors": len(file), "layers": len(layers), "peft": peft.__version__,
                      "transformers": transformers.__version__}))


if __name__ == "__main__":
    main()
