"""Text models inside larger ones: wrapped/NAME/ with logits of transformers, and adapters in PEFT.

    python wrapped_files.py --binary target/release/qlora-train --work SOME_FOLDER [NAME …]

wrapped/NAME/: a tiny random model of each class of CLASSES as transformers saves it, without what reads images, and
`expected.safetensors` with `input_ids` and the `logits` of the whole class for text.

Then adapters are trained on a whole model of each class, of all layers and of one, for that class and for its text
model's own. PEFT loads each on its class, as it is and after `export uniform`, has to use every tensor of it, and has to
have the loss that `eval` has. So has an adapter that PEFT made, before and after `export uniform`. Status 1 if not.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from tiny import byte_tokenizer

HERE = pathlib.Path(__file__).parent
TEXT = dict(
    hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=512, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
VISION = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_heads=2, image_size=28, patch_size=14)
QWEN_VISION = dict(hidden_size=16, intermediate_size=16, depth=1, num_heads=2, out_hidden_size=32)
GEMMA3 = dict(query_pre_attn_scalar=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"], hidden_activation="gelu_pytorch_tanh")
MROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
YARN = dict(
    rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=8.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1, original_max_position_embeddings=64,
)  # fmt: skip
CLASSES = {
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3Config", GEMMA3, VISION, "Gemma3ForCausalLM"),
    "mistral3": ("Mistral3ForConditionalGeneration", "Mistral3Config", dict(model_type="mistral", sliding_window=None), dict(model_type="pixtral", **VISION), "MistralForCausalLM"),
    "ministral3": ("Mistral3ForConditionalGeneration", "Mistral3Config", dict(model_type="ministral3", rope_parameters=YARN), dict(model_type="pixtral", **VISION), "Ministral3ForCausalLM"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig", dict(rope_parameters=MROPE), QWEN_VISION, "Qwen2ForCausalLM"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLConfig", dict(rope_parameters=MROPE), dict(deepstack_visual_indexes=[0], **QWEN_VISION), "Qwen3ForCausalLM"),
}
AROUND = ("vision", "visual", "multi_modal_projector")
ROWS = ["one two three four", "a b c d e f g", "hello, hello, hello", "the rain in Spain"]


def model(name, vocabulary, out):
    architecture, config, text, vision, _ = CLASSES[name]
    config = getattr(transformers, config)(
        text_config={**TEXT, **text, "vocab_size": vocabulary}, vision_config=vision, tie_word_embeddings=name == "gemma3"
    )
    torch.manual_seed(5)
    model = getattr(transformers, architecture)(config)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            center = 1.0 if "norm" in path and name != "gemma3" else 0.0
            parameter.copy_(torch.randn(parameter.shape) * (0.1 if "norm" in path else 0.15) + center)
    shutil.rmtree(out, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    return load(name, out)


def load(name, directory):
    architecture = getattr(transformers, CLASSES[name][0])
    return architecture.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def golden(name):
    out = HERE / "wrapped" / name
    whole = model(name, 48, out)
    ids = torch.randint(3, 48, (1, 23))
    with torch.no_grad():
        logits = whole(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    save_file({"input_ids": ids[0], "logits": logits.contiguous()}, out / "expected.safetensors")
    # The vision tower is large beside the rest; one tensor of it is left.
    stored = load_file(out / "model.safetensors")
    around = [key for key in stored if any(word in key for word in AROUND)]
    for key in around[1:]:
        del stored[key]
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    print(f"{name}: {len(around)} tensors around the text model, {sorted(stored)[0]} …")


def run(args, *line):
    done = subprocess.run([str(args.binary), *map(str, line)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, line))}\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def adapters(args, name):
    directory = args.work / name
    model(name, 258, directory)
    byte_tokenizer(directory)
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": row}) + "\n" for row in ROWS))
    good = True
    for served, layers in [(served, layers) for served in (CLASSES[name][0], CLASSES[name][4]) for layers in ([], ["--layers-to-transform", 1])]:
        out = directory / f"{served}-{len(layers)}"
        line = ["--model", directory, "--data", rows, "--device", "cpu", "--quantization", "none", "--compute", "f32", "--max-length", 64]
        more = ["--max-steps", 4, "--learning-rate", "1e-2", "--gradient-accumulation-steps", 1, "--adapter-architecture", served]
        run(args, "train", "--json", *line, "--output-dir", out, *more, *layers)
        run(args, "export", "uniform", "--json", "--adapter", out, "--output-dir", f"{out}-uniform")
        ours = run(args, "eval", "--json", *line, "--adapter", out)
        for adapter in (out, pathlib.Path(f"{out}-uniform")):
            base = load(name, directory) if served == CLASSES[name][0] else text_model(name, directory)
            good = served_alike(adapter, base, ours) and good
    return theirs(args, name, directory, rows) and good


def served_alike(adapter, base, ours):
    """PEFT uses every tensor of the adapter on this base, and has our loss."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(base, adapter).eval()
    used = {key.replace(".default", "") for key, _ in adapted.named_parameters() if "lora_" in key}
    stored = set(load_file(adapter / "adapter_model.safetensors"))
    missing = [str(w.message) for w in caught if "missing" in str(w.message)]
    loss, count = loss_of(adapted)
    apart = abs(loss - ours["loss"])
    same = used == stored and not missing and apart < 1e-5 and ours["tokens"] == count
    print(f"{adapter.name}: {config['target_modules']}, {len(stored)} tensors, loss {ours['loss']:.5f}, {apart:.1e} from PEFT's{'' if same else '  DIFFERENT'} {missing}")
    return same


def loss_of(model):
    total, count = 0.0, 0
    for row in ROWS:
        ids = torch.tensor([[*row.encode(), 257]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return total / count, count


def theirs(args, name, directory, rows):
    """An adapter that PEFT made for the whole class, with an alpha of its own, is written again for that class."""
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q_proj|up_proj)", task_type="CAUSAL_LM",
        alpha_pattern={r".*language_model\.layers\.1\..*q_proj": 64}, init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(7)
    made, again = directory / "theirs", directory / "theirs-uniform"
    adapted = peft.get_peft_model(load(name, directory), config).eval()
    adapted.save_pretrained(made)
    expected, _ = loss_of(adapted)
    line = ["--model", directory, "--data", rows, "--device", "cpu", "--quantization", "none", "--compute", "f32", "--max-length", 64]
    ours = run(args, "eval", "--json", *line, "--adapter", made)
    run(args, "export", "uniform", "--json", "--adapter", made, "--output-dir", again)
    good = abs(expected - ours["loss"]) < 1e-5
    print(f"theirs: loss {expected:.5f}, ours {ours['loss']:.5f}{'' if good else '  DIFFERENT'}")
    return served_alike(again, load(name, directory), ours) and good


def text_model(name, directory):
    """The text model alone."""
    architecture = getattr(transformers, CLASSES[name][4])
    config = json.loads((directory / "config.json").read_text())["text_config"]
    config_class = architecture.config_class
    if "rope_parameters" in config:
        config["rope_parameters"].pop("mrope_section", None)
    config = config_class(**{key: value for key, value in config.items() if key not in ("model_type", "dtype")})
    config.tie_word_embeddings = name == "gemma3"
    alone = architecture(config)
    stored = load_file(directory / "model.safetensors")
    own = lambda key: re.sub(r"^(model\.language_model|language_model\.model)\.", "model.", key).replace("language_model.lm_head", "lm_head")
    renamed = {own(key): tensor.float() for key, tensor in stored.items() if not any(word in key for word in AROUND)}
    left = alone.load_state_dict(renamed, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"lm_head.weight"}, left
    alone.tie_weights()
    return alone.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("classes", nargs="*", metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in args.classes or CLASSES:
        golden(name)
    good = all([adapters(args, name) for name in args.classes or CLASSES])
    print("every adapter is served" if good else "DIFFERENT")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
