"""A run's whole life on a real model: YAML, training, loss, merging, loss again, GGUF, answers of llama.cpp.

    pip install llama-cpp-python==0.3.36
    python3 tests/golden/check_pipeline.py --binary target/release/qlora-train --work SOME_FOLDER

SmolLM2-135M-Instruct (`cargo xtask setup`) learns the habit of `cargo xtask demo`: one sentence, then `Topic: <word>`. The
loss of the validation rows is that of the adapter on its base and that of the merged model, which may differ by what
rounding to bf16 explains. The eight questions are answered by llama.cpp, with the chat template that the file carries, and by
`generate`: the texts are equal, or part at a token where the two are as likely as rounding allows.

It writes pipeline.json. An adapter that an earlier run left in SOME_FOLDER is used again. Status 1 if anything is off.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys

import llama_cpp
import numpy
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

HERE = pathlib.Path(__file__).parent
DATA = HERE.parents[1] / "examples/data"
ANSWER_TOKENS = 40
# Answers with the habit, as `cargo xtask demo` asks for them.
AT_MOST_BEFORE, AT_LEAST_AFTER = 1, 7
# Relative errors of a number in each type, as in check_gguf.py: 11 bits, 8 bits, and 2.4/127 of the deviation in Q8_0.
ERRORS = {"f16": 2.8e-4, "bf16": 2.3e-3, "q8_0": 5.5e-3}
# Spread of the logits in nats, times what the errors of all layers come to beside those of one.
LOGITS = 3 * 2
YAML = """\
model: {model}
data: {data}/habit.train.jsonl
val_data: {data}/habit.validation.jsonl
output_dir: {work}/adapter
lora_r: 16
lora_target_modules: all-linear
learning_rate: 5.0e-4
num_train_epochs: 3
max_length: 512
seed: 42
device: cpu
"""


def loss_limit(tokens):
    """The most that rounding weights to bf16 moves a loss over `tokens` tokens.

    A logit is off by d, either way. The mean moves by d/sqrt(tokens) either way and by d*d/2 upwards: four deviations
    and twice that.
    """
    d = LOGITS * ERRORS["bf16"]
    return 4 * d / math.sqrt(tokens) + d * d


def margin_limit(kind):
    """The largest distance of the logits of two tokens that change places: four deviations of their difference.

    llama.cpp rounds inputs to the type of the weights too, so both errors count.
    """
    return 4 * math.sqrt(2) * LOGITS * math.sqrt(2) * ERRORS[kind]


def has_habit(answer):
    """One line that ends as a sentence does, then the line that names a topic, as in bins/xtask/src/demo/habit.rs."""
    sentence, _, topic = answer.strip().partition("\n")
    one = sentence.rstrip().endswith(".") and ". " not in sentence.rstrip().rstrip(".")
    word = topic.removeprefix("Topic: ") if topic.startswith("Topic: ") else ""
    return one and word != "" and all("a" <= letter <= "z" for letter in word)


class Trainer:
    def __init__(self, args):
        self.binary, self.model, self.work = args.binary, args.model, args.work

    def run(self, *line):
        command = [str(self.binary), *map(str, line)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}\nended with {done.returncode}")
        return json.loads(done.stdout)

    def train(self):
        adapter, config, answer = self.work / "adapter", self.work / "run.yaml", self.work / "train.json"
        if not (adapter / "adapter_config.json").exists() or not answer.exists():
            config.write_text(YAML.format(model=self.model, data=DATA, work=self.work))
            answer.write_text(json.dumps(self.run("train", "--json", config)))
        return adapter, json.loads(answer.read_text())

    def computed(self, command, held, *line):
        """The answer of a command that computes in f32, with the base held in NF4 or as it is."""
        return self.run(command, "--json", "--device", "cpu", "--compute", "f32", "--quantization", held, *line)

    def loss(self, held, *line):
        found = self.computed("eval", held, "--data", DATA / "habit.validation.jsonl", *line)
        return {"loss": found["loss"], "tokens": found["tokens"]}

    def answers(self, questions, *line):
        asked = [word for question in questions for word in ("--prompt", question)]
        found = self.computed("generate", "none", "--max-new-tokens", ANSWER_TOKENS, *line, *asked)
        return [completion["text"] for completion in found["completions"]]

    def written(self, name, *command):
        """The answer of a command that writes a directory; an earlier directory is removed."""
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        return out, self.run(*command, "--json", "--output-dir", out)

    def merge(self, name, base, adapter):
        return self.written(name, "merge", "--model", self.model, "--adapter", adapter, "--base", base)[0]

    def gguf(self, name, *line):
        return pathlib.Path(self.written(name, "export", "gguf", *line)[1]["file"])


class Served:
    """A file in llama.cpp, with keys and values in f32, asked through the chat template that it carries."""

    def __init__(self, path, lora=None):
        self.model = llama_cpp.Llama(
            str(path), lora_path=lora and str(lora), n_ctx=256, n_threads=2, logits_all=True, verbose=False, type_k=0, type_v=0
        )
        names = self.model.metadata
        text = lambda key: self.model._model.token_get_text(int(names[f"tokenizer.ggml.{key}_token_id"]))
        self.template = Jinja2ChatFormatter(names["tokenizer.chat_template"], eos_token=text("eos"), bos_token=text("bos"))

    def tokens(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=True)

    def prompt(self, question):
        return self.tokens(self.template(messages=[{"role": "user", "content": question}]).prompt)

    def logits(self, ids):
        self.model.eval(ids)
        return self.model.scores[self.model.n_tokens - 1]

    def answer(self, question):
        """The most likely tokens, up to one that ends an answer."""
        self.model.reset()
        ids, out = self.prompt(question), []
        while len(out) < ANSWER_TOKENS:
            best = int(numpy.argmax(self.logits(ids)))
            if llama_cpp.llama_vocab_is_eog(self.model._model.vocab, best):
                break
            out.append(best)
            ids = [best]
        return self.text(out)

    def text(self, ids):
        return self.model.detokenize(ids).decode(errors="replace")

    def margin(self, question, ours, theirs):
        """The lead in logits of llama.cpp's token where the two answers part."""
        end = [int(self.model.token_eos())]
        ours, theirs = self.tokens(ours) + end, self.tokens(theirs) + end
        part = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
        self.model.reset()
        logits = self.logits(self.prompt(question) + theirs[:part])
        return float(logits[theirs[part]] - logits[ours[part]])


def compared(served, kind, questions, expected):
    """Answers of llama.cpp beside those of `generate`."""
    texts = [served.answer(question) for question in questions]
    different = []
    for question, ours, theirs in zip(questions, expected, texts):
        if ours != theirs:
            margin = served.margin(question, ours, theirs)
            case = {"question": question, "generate": ours, "llama.cpp": theirs, "margin": margin, "limit": margin_limit(kind)}
            different.append(case | {"explained": 0 <= margin <= case["limit"]})
    return {
        "habit": sum(map(has_habit, texts)), "equal": len(texts) - len(different), "different": different, "answers": texts
    }


def losses(trainer, adapter):
    """The adapter on its base and the merged model, for the NF4 base that was trained on and the 16-bit original."""
    cases, merged = {}, {}
    for base, held in (("nf4", "nf4"), ("bf16", "none")):
        merged[base] = trainer.merge(f"merged-{base}", base, adapter)
        alone, attached = trainer.loss(held, "--model", trainer.model), trainer.loss(held, "--model", trainer.model, "--adapter", adapter)
        after = trainer.loss("none", "--model", merged[base])
        limit = loss_limit(attached["tokens"])
        off = after["loss"] - attached["loss"]
        same = abs(off) <= limit and attached["tokens"] == after["tokens"] and attached["loss"] < alone["loss"] - 10 * limit
        cases[base] = {"tokens": attached["tokens"], "base": alone["loss"], "adapter": attached["loss"], "merged": after["loss"]}
        cases[base] |= {"off": off, "limit": limit, "same": same}
        print(f"loss on {base}: {cases[base]}", flush=True)
    return cases, merged["bf16"]


def answers(trainer, adapter, merged):
    questions = (DATA / "habit.questions.txt").read_text().splitlines()
    base = trainer.gguf("gguf-base", "--model", trainer.model, "--type", "f16")
    lora = trainer.gguf("gguf-lora", "--model", trainer.model, "--adapter", adapter, "--lora")
    files = {kind: trainer.gguf(f"gguf-{kind}", "--model", merged, "--type", kind) for kind in ("f16", "q8_0")}
    ours = {
        "base": trainer.answers(questions, "--model", trainer.model),
        "adapter": trainer.answers(questions, "--model", trainer.model, "--adapter", adapter),
        "merged": trainer.answers(questions, "--model", merged),
    }
    served = {
        "base, f16": (Served(base), "f16", "base"),
        "adapter on the base, f16": (Served(base, lora), "f16", "adapter"),
        "merged, f16": (Served(files["f16"]), "f16", "merged"),
        "merged, q8_0": (Served(files["q8_0"]), "q8_0", "merged"),
    }
    cases = {}
    for name, (model, kind, expected) in served.items():
        case = compared(model, kind, questions, ours[expected])
        learned = case["habit"] <= AT_MOST_BEFORE if expected == "base" else case["habit"] >= AT_LEAST_AFTER
        cases[name] = case | {"same": learned and all(text["explained"] for text in case["different"])}
        print(f"{name}: {case['habit']} of {len(questions)} with the habit, {case['equal']} texts as of generate", flush=True)
        for text in case["different"]:
            print(f"  {text}", flush=True)
    habits = {name: sum(map(has_habit, texts)) for name, texts in ours.items()}
    return {"questions": questions, "generate": ours, "habit of generate": habits, "llama.cpp": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=HERE.parents[1] / "target/models/smollm2-135m-instruct")
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    adapter, trained = trainer.train()
    training = {key: trained[key] for key in ("steps", "train_loss", "eval_loss")}
    print(f"trained: {training}", flush=True)
    loss, merged = losses(trainer, adapter)
    answered = answers(trainer, adapter, merged)
    good = all(case["same"] for case in [*loss.values(), *answered["llama.cpp"].values()])
    found = {"versions": {"llama_cpp": llama_cpp.__version__}, "training": training, "loss": loss, "answers": answered, "same": good}
    (HERE / "pipeline.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print("all as it should be" if good else "DIFFERENT")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
