"""The trainer's own chat templates (`chat_template: NAME`) as transformers renders them: `builtin.json`.

    venv/bin/python tests/golden/builtin_files.py --binary target/release/qlora-train --work SOME_FOLDER

For every template and conversation the text, and what is learned of it, found in the simplest way: an answer begins where
the prompt to it ends, and ends behind the first end-of-turn token. Templates with `{% generation %}` marks are asked for
their mask. The sources come from the binary, and stand in the file: a changed template needs the file made anew.
"""

import argparse
import json
import pathlib
import subprocess

import tokenizers
import transformers

import conversations as own
import templates

# Name, the tokens of its own, and the token that ends a turn.
TEMPLATES = {
    "chatml": (["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "alpaca": ([], "<eos>"),
    "llama2": ([], "<eos>"),
    "llama3": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "mistral": (["[INST]", "[/INST]"], "<eos>"),
    "zephyr": ([], "<eos>"),
    "vicuna": ([], "<eos>"),
    "gemma": (["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "phi3": (["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<|end|>"),
    "qwen3_training": (["<|im_start|>", "<|im_end|>", "<think>", "</think>"], "<|im_end|>"),
    "deepseek_r1_training": (["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"], "<eos>"),
}


def with_bos(directory):
    """The tokenizer of a folder puts a BOS before text."""
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return transformers.AutoTokenizer.from_pretrained(directory)


def source_of(binary, directory, name):
    data = directory / "row.jsonl"
    data.write_text(json.dumps(own.CONVERSATIONS["one answer"]))
    command = [binary, "preview", "--model", directory, "--data", data, "--chat-template", name, "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["chat_template"]["source"]


def supervised(tokenizer, source, row, text, end):
    """The assistant's answers, each with its end."""
    if "generation -%}" in source or "generation %}" in source:
        _, ids, mask = templates.theirs(tokenizer, source, row, True)
        pieces, before = [], 0
        for id, one in zip(ids, mask):
            if one and not before:
                pieces.append([])
            if one:
                pieces[-1].append(id)
            before = one
        return [tokenizer.decode(piece) for piece in pieces]
    pieces = []
    for at, turn in enumerate(row["messages"]):
        if turn["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(
            row["messages"][:at], chat_template=source, tokenize=False, add_generation_prompt=True
        )
        assert text.startswith(prompt), (prompt, text)
        pieces.append(text[len(prompt) : text.index(end, len(prompt)) + len(end)])
    return pieces


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    made = {}
    # Rows that a template of texts alone cannot write are refused, and have no text to compare with.
    plain = {what: row for what, row in own.CONVERSATIONS.items() if "tools" not in row and "reasoning" not in what}
    for name, (added, end) in TEMPLATES.items():
        directory = arguments.work / "builtin" / name
        templates.model(directory, "<bos> <eos> " + " ".join(added), {"bos_token": "<bos>", "eos_token": "<eos>"})
        (directory / "chat_template.jinja").unlink()
        tokenizer = with_bos(directory)
        source = source_of(arguments.binary.resolve(), directory, name)
        cases = {}
        for what, row in (own.CONVERSATIONS if name == "qwen3_training" else plain).items():
            if "developer" not in source:
                turns = [{**turn, "role": turn["role"].replace("developer", "system")} for turn in row["messages"]]
                row = {**row, "messages": turns}
            expected = templates.theirs(tokenizer, source, row)
            if isinstance(expected, str):
                cases[what] = {"refused": True}
                continue
            try:
                cases[what] = {"text": expected[0], "supervised": supervised(tokenizer, source, row, expected[0], end)}
            except Exception as error:
                # A prompt that the template refuses by itself (no turns before the answer).
                cases[what] = {"text": expected[0]}
                print(name, what, type(error).__name__, str(error)[:100])
        made[name] = {"source": source, "added": added, "cases": cases}
    document = {"conversations": own.CONVERSATIONS, "templates": made}
    path = templates.HERE / "builtin.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
