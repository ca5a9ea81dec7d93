"""Compares a checkpoint that `qlora-train quantize` wrote, as transformers and bitsandbytes load it, with its original.

    python check_quantized.py ORIGINAL_DIR QUANTIZED_DIR

Every linear weight that bitsandbytes dequantizes from the quantized directory has to equal, bit for bit, the project's
own rules (own_rules.py) applied to the original weight; every other tensor has to be the original's. Status 1 if not.
"""

import json
import pathlib
import sys

import bitsandbytes as bnb
import torch
import transformers
from safetensors import safe_open

import own_rules
from nf4_files import dequantize, quantize


def stored(directory):
    """name -> tensor, of all weight files of a directory."""
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                assert name not in tensors, name
                tensors[name] = file.get_tensor(name)
    return tensors


def expected(weight, blocksize, nested):
    """A weight after quantizing and dequantizing by the project's rules, f32."""
    code_map = bnb.functional.create_dynamic_map(signed=True).numpy()
    nf4_map = bnb.functional.get_4bit_type("nf4", device="cpu").numpy()
    codes, state = quantize(weight.contiguous(), blocksize, nested=False)
    absmax = state.absmax.numpy()
    if nested:
        absmax = own_rules.dequantize_absmax(*own_rules.double_quantize(absmax, code_map), code_map)
    return torch.from_numpy(own_rules.dequantize(codes.numpy().reshape(-1), absmax, blocksize, weight.shape, nf4_map))


def load(directory):
    """The model as a user loads it, in the dtype that config.json names."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, device_map={"": "cpu"}, dtype="auto")


def dequantized(module):
    """(f32, in the dtype of the quant_state) as bitsandbytes dequantizes; as one flat row, see nf4_files.dequantize."""
    state, codes = module.weight.quant_state, module.weight.data
    return dequantize(codes, state, torch.float32), dequantize(codes, state, state.dtype)


def compare(original, quantized):
    """Number of linear weights in NF4 and of tensors as they were; raises AssertionError where one differs."""
    before, model = stored(original), load(quantized)
    in_nf4, names = set(), set()
    for name, module in model.named_modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        weight, state = before[f"{name}.weight"], module.weight.quant_state
        assert state.quant_type == "nf4" and state.dtype == weight.dtype and state.shape == weight.shape, name
        f32, rounded = dequantized(module)
        rules = expected(weight.to(torch.float32), state.blocksize, state.nested)
        assert torch.equal(f32.view(torch.int32), rules.view(torch.int32)), f"{name}: other dequantized weights"
        assert torch.equal(rounded, rules.to(weight.dtype)), f"{name}: other weights in {weight.dtype}"
        in_nf4.add(f"{name}.weight")
    for name, tensor in model.state_dict().items():
        owner = name.split(".weight.")[0] + ".weight" if ".weight." in name else name
        if owner in in_nf4:
            continue
        if name in before:
            assert torch.equal(tensor, before[name]), f"{name}: changed"
            names.add(name)
    missing = set(before) - in_nf4 - names
    assert not missing, f"not found in the loaded model: {sorted(missing)}"
    return len(in_nf4), len(names)


def main():
    original, quantized = sys.argv[1:]
    in_nf4, same = compare(original, quantized)
    config = json.loads((pathlib.Path(quantized) / "config.json").read_text())["quantization_config"]
    print(f"{in_nf4} weights in NF4 as expected, {same} tensors as they were; {config}")


if __name__ == "__main__":
    main()
