"""Sizes and a tokenizer that tiny random models share."""

import json

COMMON = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None,
}


def byte_tokenizer(directory):
    """One token a byte, BOS and EOS."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    spelled = {b: chr(b) for b in plain}
    spelled.update({b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)})
    added = [
        {"id": 256 + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(["<bos>", "<eos>"])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {spelled[b]: b for b in range(256)}, "merges": [], "byte_fallback": False, "ignore_merges": False}
    whole = {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None}
    (directory / "tokenizer.json").write_text(json.dumps(whole | {"decoder": byte_level, "model": model}))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
