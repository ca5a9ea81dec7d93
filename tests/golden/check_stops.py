"""Ends of answers by the real template of each family: what is learned ends there, and `generate` stops there.

    python3 tests/golden/check_stops.py --binary target/release/qlora-train --work SOME_FOLDER [--only PART_OF_A_NAME]

For each row of ROWS a tiny random model of the family, with a tokenizer of bytes and of the template's own tokens, and
with the tokens that the published tokenizer_config.json, config.json and generation_config.json of such a model name as
its end. The token that ends a turn has to be the last one that is learned of each answer, and no other token of it. Then
the model learns to answer every question with one word: `generate` has to write that word and nothing behind it.

The templates come from packages, as in templates.py; of OLMo 2 and 3 no package has one, so what they write is said
here in words of our own. stops.json has what was found, once all rows were run. Status 1 if anything is not as it has
to be.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import torch
import transformers

import templates
from tiny import COMMON

HERE = pathlib.Path(__file__).parent
TULU = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>\n"
    "{{ message['content'] + eos_token }}{% if not loop.last %}\n{% endif %}{% else %}{{ '<|' + message['role'] + '|>\n' "
    "+ message['content'] + '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# transformers' config class, template, BOS and EOS of the tokenizer, `eos_token_id` of config.json and of
# generation_config.json (None: it has none), and the token that ends a turn, or those where the last turn
# ends otherwise than others.
ROWS = {
    "llama 3.1": ("LlamaConfig", "trl/llama3_1", "<|begin_of_text|>", "<|eot_id|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "llama 3, base config": ("LlamaConfig", "trl/llama3", "<|begin_of_text|>", "<|end_of_text|>", ["<|end_of_text|>"], None, "<|eot_id|>"),
    "mistral v0.3": ("MistralConfig", "axolotl/mistral_v2v3", "<s>", "</s>", ["</s>"], ["</s>"], "</s>"),
    "mistral nemo": ("MistralConfig", "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407", "<s>", "</s>", ["</s>"], ["</s>"], "</s>"),
    "qwen 2.5": ("Qwen2Config", "llama.cpp/Qwen-Qwen2.5-7B-Instruct", None, "<|im_end|>", ["<|im_end|>"], ["<|im_end|>", "<|endoftext|>"], "<|im_end|>"),
    "qwen 2.5, base config": ("Qwen2Config", "llama.cpp/Qwen-Qwen2.5-7B-Instruct", None, "<|endoftext|>", ["<|endoftext|>"], ["<|endoftext|>"], "<|im_end|>"),
    "qwen 3": ("Qwen3Config", "llama.cpp/Qwen-Qwen3-0.6B", None, "<|im_end|>", ["<|im_end|>"], ["<|im_end|>", "<|endoftext|>"], "<|im_end|>"),
    "smollm 3": ("SmolLM3Config", "llama.cpp/HuggingFaceTB-SmolLM3-3B", "<|begin_of_text|>", "<|im_end|>", ["<|im_end|>"], ["<|im_end|>"], "<|im_end|>"),
    "granite 3.3": ("GraniteConfig", "llama.cpp/ibm-granite-granite-3.3-2B-Instruct", "<|end_of_text|>", "<|end_of_text|>", ["<|end_of_text|>"], ["<|end_of_text|>"], "<|end_of_text|>"),
    "granite 4.1": ("GraniteConfig", "llama.cpp/ibm-granite-granite-4.1", "<|end_of_text|>", "<|end_of_text|>", ["<|end_of_text|>"], ["<|end_of_text|>"], "<|end_of_text|>"),
    "seed-oss": ("SeedOssConfig", "llama.cpp/ByteDance-Seed-OSS", "<seed:bos>", "<seed:eos>", ["<seed:eos>"], ["<seed:eos>"], "<seed:eos>"),
    "olmo 2": ("Olmo2Config", TULU, "<|endoftext|>", "<|endoftext|>", ["<|endoftext|>"], ["<|endoftext|>"], "<|endoftext|>"),
    "olmo 3": ("Olmo3Config", CHATML, "<|endoftext|>", "<|endoftext|>", ["<|endoftext|>"], ["<|im_end|>", "<|endoftext|>"], {"<|im_end|>", "<|endoftext|>"}),
    "phi 3": ("Phi3Config", "trl/phi3", "<s>", "<|endoftext|>", ["<|endoftext|>"], ["<|endoftext|>", "<|assistant|>", "<|end|>"], "<|end|>"),
    "phi 3.5, no generation config": ("Phi3Config", "llama.cpp/microsoft-Phi-3.5-mini-instruct", "<s>", "<|endoftext|>", ["<|endoftext|>"], None, "<|end|>"),
    "phi 4": ("Phi3Config", "axolotl/phi_4", "<|endoftext|>", "<|im_end|>", ["<|im_end|>"], ["<|im_end|>"], "<|im_end|>"),
    "gemma 2": ("Gemma2Config", "trl/gemma", "<bos>", "<eos>", ["<eos>"], ["<eos>", "<end_of_turn>"], "<end_of_turn>"),
    "gemma 3": ("Gemma3TextConfig", "trl/gemma3", "<bos>", "<eos>", ["<eos>", "<end_of_turn>"], ["<eos>", "<end_of_turn>"], "<end_of_turn>"),
    "gemma 3, base config": ("Gemma3TextConfig", "axolotl/gemma3", "<bos>", "<eos>", ["<eos>"], ["<eos>"], "<end_of_turn>"),
    "ministral 3": ("MistralConfig", "llama.cpp/mistralai-Ministral-3-14B-Reasoning-2512", "<s>", "</s>", ["</s>"], ["</s>"], "</s>"),
}
MORE = {
    "Gemma2Config": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "Gemma3TextConfig": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32, "hidden_activation": "gelu_pytorch_tanh"},
    "GraniteConfig": {"attention_multiplier": 0.25, "logits_scaling": 0.5},
    "Olmo3Config": {"sliding_window": 32},
}
WORD = "ahoy"
TURNS = ["hello", "who are you?", "count", "name a color", "2 + 2", "bye"]


def run(args, *line):
    done = subprocess.run([str(args.binary), *map(str, line)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, line))}\n{done.stdout}{done.stderr}\nended with {done.returncode}")
    return json.loads(done.stdout)


def model(directory, source, config_class, bos, eos, config_eos, generation_eos):
    names = {"eos_token": eos} | ({"bos_token": bos} if bos else {})
    own = list(dict.fromkeys([*config_eos, *(generation_eos or [])]))
    # Tokens that the template does not write are in the vocabulary too.
    tokenizer = templates.model(directory, source, names | {f"end_{at}": token for at, token in enumerate(own)})
    (directory / "tokenizer_config.json").write_text(json.dumps({**names, "tokenizer_class": "PreTrainedTokenizerFast"}))
    ids = lambda tokens: [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    one = lambda found: found[0] if len(found) == 1 else found
    sizes = COMMON | {"vocab_size": 1024, "max_position_embeddings": 4096, "tie_word_embeddings": True, "pad_token_id": 0}
    sizes |= {"bos_token_id": ids([bos])[0] if bos else None, "eos_token_id": one(ids(config_eos))}
    torch.manual_seed(3)
    config = getattr(transformers, config_class)(**(sizes | MORE.get(config_class, {})), initializer_range=0.1)
    transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    generation = directory / "generation_config.json"
    generation.unlink(missing_ok=True)
    if generation_eos is not None:
        generation.write_text(json.dumps({"eos_token_id": one(ids(generation_eos)), "do_sample": True}))
    return tokenizer


def check(args, name, row, sources):
    config_class, template, bos, eos, config_eos, generation_eos, end = row
    source = sources.get(template, template)
    if source == template and "{" not in template:
        sys.exit(f"{name}: no package has the template {template}")
    directory = args.work / "stops" / name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(directory, ignore_errors=True)
    tokenizer = model(directory, source, config_class, bos, eos, config_eos, generation_eos)
    turn = lambda role, text: {"role": role, "content": text}
    rows = [[turn("user", text), turn("assistant", WORD)] for text in TURNS]
    rows.append([*rows[0], *rows[1]])
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    shown = run(args, "preview", "--json", "--model", directory, "--data", data, "--rows", len(rows), "--max-length", 4096)["rows"]
    assert len(shown) == len(rows)
    expected = end if isinstance(end, set) else {end}
    endings, answers = set(), 0
    for row in shown:
        mask = [int(label != -100) for label in row["labels"]]
        for first, behind in templates.runs(mask):
            learned = tokenizer.convert_ids_to_tokens(row["input_ids"][first:behind])
            endings.add(learned[-1])
            answers += 1
            assert not expected & set(learned[:-1]), (name, learned)
    out = directory / "out"
    line = ["--model", directory, "--data", data, "--output-dir", out, "--device", "cpu", "--quantization", "none"]
    line += ["--max-steps", 80, "--learning-rate", "1e-2", "--lora-r", 16, "--per-device-train-batch-size", 4, "--warmup-steps", 0]
    loss = run(args, "train", "--json", *line, "--gradient-accumulation-steps", 1, "--max-length", 4096)["train_loss"]
    prompts = [word for text in [TURNS[0], TURNS[3]] for word in ("--prompt", text)]
    said = run(args, "generate", "--json", "--device", "cpu", "--model", directory, "--adapter", out, "--max-new-tokens", 24, *prompts)
    texts = [completion["text"] for completion in said["completions"]]
    good = endings == expected and answers == len(rows) + 1 and all(text.strip() == WORD for text in texts)
    print(f"{name}: learned up to {sorted(endings)} in {answers} answers, loss {loss:.3f}, says {texts}{'' if good else '  WRONG'}", flush=True)
    return {"template": template if source != template else "our own words", "learned up to": sorted(endings), "says": texts, "good": good}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sources = templates.every(args.work)
    found = {name: check(args, name, row, sources) for name, row in ROWS.items() if args.only in name}
    if not args.only:
        (HERE / "stops.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    good = all(entry["good"] for entry in found.values())
    print("every answer ends where its turn does" if good else "WRONG")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
