"""checkpoint/: a tiny Llama, NF4 checkpoints of it as transformers and bitsandbytes save them, and what they dequantize to.

    python checkpoint_files.py --binary target/release/qlora-train [--out tests/golden/checkpoint]

`base/` is the random original. VARIANTS of `theirs.json` lie in `theirs-VARIANT/`. `ours.json` holds, for several ways of
calling `qlora-train quantize` on `base/`, the SHA-256 of the file it wrote and of every weight that transformers and
bitsandbytes dequantized from it; check_quantized.py compared those with the original first.
"""

import argparse
import copy
import hashlib
import json
import pathlib
import shutil
import subprocess
import tempfile

import bitsandbytes as bnb
import torch
import transformers

import check_quantized
from nf4_files import dequantize, sha256

HERE = pathlib.Path(__file__).parent
# In 96 features blocks of 64 straddle rows; 40 x 96 weights leave no partial block, 24 x 40 do.
SIZES = dict(
    vocab_size=48,
    hidden_size=40,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=5,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)
# Arguments of BitsAndBytesConfig.
THEIRS = {
    "double": dict(bnb_4bit_use_double_quant=True),
    "bf16-storage": dict(bnb_4bit_use_double_quant=False, bnb_4bit_quant_storage="bfloat16"),
    "f32-storage": dict(
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage="float32",
        llm_int8_skip_modules=["lm_head", "model.layers.1.mlp", "model.layers.0.self_attn.q_proj"],
    ),
    # An explicit list without lm_head: it is quantized too.
    "head": dict(bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["model.layers.0.mlp.up_proj"]),
}
# Arguments of `qlora-train quantize`.
OURS = {
    "double": [],
    "plain": ["--no-double-quant", "--nf4-block-size", "128"],
    "skip": ["--nf4-block-size", "32", "--llm-int8-skip-modules", "v_proj,model.layers.1.mlp"],
}


def save_base(directory):
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.1 if "norm" in name else 0.02 * torch.rand(parameter.shape[0], 1, dtype=torch.float32) + 0.01
            parameter.copy_(torch.randn(parameter.shape) * scale + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(directory)


def dequantized_hashes(model):
    """SHA-256 over the f32 bytes, and over those in the dtype of the quant_state, of every quantized weight."""
    hashes = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            state, codes = copy.copy(module.weight.quant_state), module.weight.data.view(torch.uint8)
            hashes[f"{name}.weight"] = {
                "f32": sha256(dequantize(codes, state, torch.float32)),
                "rounded": sha256(dequantize(codes, state, state.dtype)),
            }
    return hashes


def theirs(base, out):
    facts = {}
    for variant, options in THEIRS.items():
        directory = out / f"theirs-{variant}"
        settings = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16", **options
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base, quantization_config=settings, dtype=torch.bfloat16, device_map={"": "cpu"}
        )
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory)
        # A second program reads it back.
        facts[variant] = dequantized_hashes(check_quantized.load(directory))
        assert facts[variant] == dequantized_hashes(model), variant
        print(variant, len(facts[variant]), "quantized weights")
    return facts


def ours(base, binary):
    facts = {}
    for variant, arguments in OURS.items():
        with tempfile.TemporaryDirectory() as scratch:
            directory = pathlib.Path(scratch) / "quantized"
            command = [binary, "quantize", "--model", str(base), "--output", str(directory), *arguments]
            subprocess.run(command, check=True)
            counts = check_quantized.compare(base, directory)
            print(variant, *counts)
            facts[variant] = {
                "arguments": arguments,
                "file_sha256": hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest(),
                "dequantized": dequantized_hashes(check_quantized.load(directory)),
            }
    return facts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--out", default=HERE / "checkpoint", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    base = arguments.out / "base"
    base.mkdir(parents=True, exist_ok=True)
    save_base(base)
    write = lambda name, value: (arguments.out / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    write("theirs.json", theirs(base, arguments.out))
    write("ours.json", ours(base, arguments.binary))
    for path in sorted(arguments.out.rglob("*.*")):
        print(f"{path.stat().st_size:9d} {path.relative_to(arguments.out)}")


if __name__ == "__main__":
    main()
