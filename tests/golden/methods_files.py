"""methods/: twenty steps of each adapter method in PEFT, on the tiny random models of this folder.

    python methods_files.py [--out tests/golden/methods] [--methods NAME ...]
    python methods_files.py --check target/release/qlora-train --work SOME_FOLDER

NAME.json holds the settings by the trainer's names, PEFT's adapter_config and the loss of every step; NAME.safetensors
the adapter's tensors before (`initial.KEY`) and after (`final.KEY`). With --check nothing is written: the trainer runs with
the same settings, and PEFT loads the adapter that it exports on the base as it is; the loss that PEFT computes over all
rows must be that of the trained model.

The bases of methods/ have heads that no kernel for GPUs takes. With --heads-of-64 everything is in methods/heads_of_64/: bases
with such heads, and a rate of learning by which twenty steps end near each other where they are rounded in different places.
NAME.json then has the norm of the gradients of every step too, and under `bf16` how far PEFT is from itself where it computes in
that: losses and norms of every step, and of every tensor ‖change - change in f32‖ / ‖change in f32‖.
"""

import argparse
import copy
import json
import pathlib
import subprocess
import types

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import family_files

HERE = pathlib.Path(__file__).parent
STEPS, MICRO_BATCHES, RATE, CLIP = 20, 2, 4e-3, 1.0
VOCABULARY = 48
# A method: PEFT's settings, and the trainer's where they have other names.
METHODS = {
    "patterns": dict(
        r=4,
        lora_alpha=8,
        rank_pattern={"v_proj": 2, r"layers\.1\.mlp\..*": 6, ".*_proj": 4},
        alpha_pattern={"^model.layers.0.self_attn.q_proj": 16, "(up|down)_proj": 3},
    ),
    "patterns_rslora": dict(r=4, lora_alpha=4, use_rslora=True, rank_pattern={"down_proj": 3}, alpha_pattern={"k_proj": 6}),
    "layers": dict(r=4, lora_alpha=8, layers_to_transform=[1]),
    # Its output layer is its embedding.
    "whole_tied": dict(r=4, lora_alpha=8, modules_to_save=["embed_tokens", "norm"], ensure_weight_tying=True),
    "whole": dict(r=4, lora_alpha=8, modules_to_save=["embed_tokens", "lm_head", "layernorm"]),
    # Its norms multiply by 1 + w, and its embedding is multiplied by a number.
    "whole_gemma3": dict(r=4, lora_alpha=8, modules_to_save=["embed_tokens", "norm"], ensure_weight_tying=True),
}
METHODS |= {
    # Rows of one tensor that is embedding and output layer, out of order.
    "tokens_tied": dict(r=4, lora_alpha=8, trainable_token_indices=[40, 5, 17]),
    "tokens": dict(r=4, lora_alpha=8, trainable_token_indices={"embed_tokens": [9, 3], "lm_head": [7, 30, 11]}),
    # Its embedding is multiplied by a number.
    "tokens_gemma3": dict(r=4, lora_alpha=8, trainable_token_indices=[12, 6], modules_to_save=["norm"]),
}
METHODS |= {
    "pissa": dict(r=4, lora_alpha=8, init_lora_weights="pissa"),
    "pissa_niter": dict(r=4, lora_alpha=4, init_lora_weights="pissa_niter_4", use_rslora=True, alpha_pattern={"v_proj": 6}),
    "olora": dict(r=4, lora_alpha=8, init_lora_weights="olora"),
    "dora": dict(r=4, lora_alpha=8, use_dora=True),
    # The queries, keys and values of its layers have biases.
    "dora_biases": dict(r=4, lora_alpha=4, use_dora=True, use_rslora=True, rank_pattern={"q_proj": 3}),
}
METHODS |= {
    # Three cuts on the way and the last one at step 15; A and B are pulled towards orthogonality.
    "adalora": dict(
        peft_type="ADALORA", init_r=6, target_r=2, lora_alpha=90, tinit=4, tfinal=5, deltaT=3, orth_reg_weight=0.3, beta1=0.8, beta2=0.9
    ),
}
BASES = {name: "methods/base" for name in ["pissa", "pissa_niter", "olora", "dora"]}
BASES |= {"dora_biases": "qwen2", "whole": "methods/base", "whole_gemma3": "gemma3"}
BASES |= {"tokens": "methods/base", "tokens_gemma3": "gemma3"}
# In methods/heads_of_64/
HEADS_OF_64 = dict(head_dim=64, num_attention_heads=2, num_key_value_heads=1)
RATE_OF_64 = 1e-3
METHODS_OF_64 = {name: settings for name, settings in METHODS.items() if "gemma3" not in name and name != "pissa_niter"}
# So few that no cut hangs on a rounding.
METHODS_OF_64["adalora"] = METHODS["adalora"] | dict(target_modules=["down_proj", "o_proj", "v_proj"])
BASES_OF_64 = {name: f"methods/heads_of_64/{BASES.get(name, 'qwen3').replace('methods/base', 'llama')}" for name in METHODS_OF_64}
BASES_OF_64["adalora"] = "methods/heads_of_64/llama"
# PEFT's names that the trainer does not know as settings.
ONLY_PEFT = ["ensure_weight_tying"]
OUR_NAMES = {"r": "lora_r", "target_modules": "lora_target_modules", "beta1": "adalora_beta1", "beta2": "adalora_beta2"}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_rows():
    generator = torch.Generator().manual_seed(5)
    rows = []
    for length in [14, 19, 11, 23, 16, 13, 20, 18]:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return rows


def make_base(folder, **heads):
    """A tiny Llama with an output layer of its own, whose linear weights have singular values that fall, with a gap after
    the fourth: which of them are the largest does not hang on a rounding."""
    torch.manual_seed(11)
    heads = heads or dict(head_dim=8, num_attention_heads=4, num_key_value_heads=2)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=56, num_hidden_layers=2, max_position_embeddings=64,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, **heads,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_proj.weight"):
                u, values, v = torch.linalg.svd(torch.randn(weight.shape), full_matrices=False)
                values = torch.where(torch.arange(len(values)) < 4, 2.0, 0.6) * 0.85 ** torch.arange(len(values))
                weight.copy_(u @ torch.diag(values) @ v)
            elif "norm" in name:
                weight.add_(0.1 * torch.randn(weight.shape))
            else:
                weight.normal_(0, 0.3)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink()


def make_bases_of_64(folder):
    make_base(folder / "llama", **HEADS_OF_64)
    for family in ["qwen2", "qwen3"]:
        torch.manual_seed(12)
        family_files.random_model(family, **HEADS_OF_64).to(torch.bfloat16).save_pretrained(folder / family)
        (folder / family / "generation_config.json").unlink()


def base_model(base):
    """In bf16, as it is stored; computed with in f32 once the method has begun."""
    return transformers.AutoModelForCausalLM.from_pretrained(HERE / base, dtype=torch.bfloat16, attn_implementation="eager")


def loss_sum(model, row):
    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
    logits = model(input_ids=ids, use_cache=False).logits.float()
    sums = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
    return sums, int((labels[:, 1:] != -100).sum())


def mean_loss(model, rows):
    with torch.no_grad():
        sums = [loss_sum(model.eval(), row) for row in rows]
    return float(sum(loss for loss, _ in sums)) / sum(count for _, count in sums)


def is_adalora(model):
    return isinstance(model.peft_config["default"], peft.AdaLoraConfig)


def state(model):
    """The adapter's tensors; with AdaLoRA all of them under names such as LoRA has, as PEFT would leave out what is cut."""
    if is_adalora(model):
        own = [(name, tensor) for name, tensor in model.named_parameters() if "lora_" in name and tensor.requires_grad]
        return {name.replace(".default", ".weight"): tensor.detach().clone().contiguous() for name, tensor in own}
    return {name: tensor.detach().float().clone().contiguous() for name, tensor in peft.get_peft_model_state_dict(model).items()}


def begin(base, settings):
    settings = copy.deepcopy(settings)
    torch.manual_seed(3)
    settings = dict(lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM") | settings
    if settings.pop("peft_type", "LORA") == "ADALORA":
        model = peft.get_peft_model(base_model(base), peft.AdaLoraConfig(total_step=STEPS, **settings)).float()
        # PEFT 0.21.2 means the rank that alpha is divided by to be constant and does not save it. Where the base is not
        # in f32 on the CPU, it is copied into a parameter that needs a gradient again.
        for part, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and ".ranknum." not in part)
        return model
    config = peft.LoraConfig(**settings)
    if "init_lora_weights" not in settings:
        return peft.get_peft_model(base_model(base), config).float()
    # On a base in bf16 PEFT rounds what the terms begin with to bf16 too. Here it stays in f32, and the residual is
    # rounded.
    model = peft.get_peft_model(base_model(base).float(), config)
    for part, weight in model.named_parameters():
        if "base_layer" in part:
            weight.data = weight.data.bfloat16().float()
    return model


def regularization(model):
    """The term that PEFT's AdaLoRA adds to a loss, by its own code: it asks the model inside for the loss."""
    inside = model.base_model.model
    inside.forward = lambda: types.SimpleNamespace(loss=torch.zeros(()))
    try:
        return model.base_model.forward().loss
    finally:
        del inside.forward


def train(model, rows, rate, dtype=torch.float32):
    """Losses, and norms of the gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    model.train()
    for step in range(STEPS):
        batch = [rows[(step * MICRO_BATCHES + micro) % len(rows)] for micro in range(MICRO_BATCHES)]
        # Its cache of weights would be that of the first step.
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False):
            parts = [loss_sum(model, row) for row in batch]
        loss = sum(part for part, _ in parts) / sum(count for _, count in parts)
        if is_adalora(model):
            # Once for each optimizer step. The loss that is compared is the one without it.
            (loss + regularization(model)).backward()
        else:
            loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trained, CLIP).item())
        optimizer.step()
        if is_adalora(model):
            model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def changes(model, initial):
    return {key: value.double() - initial[key].double() for key, value in state(model).items()}


def in_bf16(base, settings, rows, expected):
    """The distance of PEFT from `expected`, its changes in f32, with frozen weights and products in bf16."""
    model = begin(base, settings)
    for part, parameter in model.named_parameters():
        if not parameter.requires_grad and ".ranknum." not in part:
            parameter.data = parameter.data.bfloat16()
    initial = state(model)
    losses, norms = train(model, rows, RATE_OF_64, torch.bfloat16)
    found = changes(model, initial)
    moved = {key: float((found[key] - change).norm() / change.norm()) for key, change in expected.items()}
    everything = [torch.cat([of[key].flatten() for key in expected]) for of in (found, expected)]
    in_all = float((everything[0] - everything[1]).norm() / everything[1].norm())
    return {"losses": losses, "grad_norms": norms, "moved": moved, "moved_in_all": in_all}


def our_settings(settings, rate):
    common = dict(
        quantization="none", compute="f32", optim="adamw_torch", learning_rate=rate, lr_scheduler_type="constant",
        max_steps=STEPS, num_train_epochs=STEPS * MICRO_BATCHES // len(make_rows()), gradient_accumulation_steps=MICRO_BATCHES,
        packing=False, shuffle=False, max_grad_norm=CLIP, max_length=64,
    )  # fmt: skip
    own = {name: value for name, value in settings.items() if name not in ONLY_PEFT}
    return {**common, **{OUR_NAMES.get(name, name): value for name, value in own.items()}}


def make(name, settings, base, out, heads_of_64):
    model, rows = begin(base, settings), make_rows()
    rate = RATE_OF_64 if heads_of_64 else RATE
    initial = state(model)
    losses, norms = train(model, rows, rate)
    final = state(model)
    config = {key: value for key, value in model.peft_config["default"].to_dict().items() if not isinstance(value, set)}
    config["target_modules"] = sorted(model.peft_config["default"].target_modules)
    record = {
        "settings": our_settings(settings, rate),
        "base": base,
        "adapter_config": {key: config[key] for key in ["peft_type", "task_type", "target_modules", "lora_dropout", *settings]},
        "losses": losses,
        "final_loss": mean_loss(model, rows),
    }
    if heads_of_64:
        record |= {"grad_norms": norms, "bf16": in_bf16(base, settings, rows, changes(model, initial))}
    (out / f"{name}.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    tensors = {f"initial.{key}": value for key, value in initial.items()} | {f"final.{key}": value for key, value in final.items()}
    save_file(tensors, out / f"{name}.safetensors")
    print(f"{name}: loss {losses[0]:.4f} to {losses[-1]:.4f}")


def check(name, settings, binary, work):
    """The adapter that the trainer exports, in PEFT."""
    golden = json.loads((HERE / "methods" / f"{name}.json").read_text())
    tensors = load_file(HERE / "methods" / f"{name}.safetensors")
    work = work / name
    work.mkdir(parents=True)
    base = golden.get("base", "qwen3")
    given = {**golden["settings"], "model": str(HERE / base), "data": str(HERE / "methods" / "rows.jsonl"), "output_dir": str(work / "out")}
    # AdaLoRA begins with numbers of its own: the loss is that of the trainer's own evaluation.
    own_start = "peft_type" in settings
    if settings.get("init_lora_weights", True) is True and not own_start:
        start = work / "start"
        start.mkdir()
        (start / "adapter_config.json").write_text(json.dumps(golden["adapter_config"]))
        save_file({k.removeprefix("initial."): v for k, v in tensors.items() if k.startswith("initial.")}, start / "adapter_model.safetensors")
        given["init_adapter"] = str(start)
    (work / "run.json").write_text(json.dumps({**given, "allow": "all"}))
    subprocess.run([binary, "train", str(work / "run.json"), "--json"], check=True, capture_output=True)
    folders, expected = {"exported": work / "out"}, golden["final_loss"]
    if own_start:
        rows = ["--data", given["data"], "--max-length", "64", "--compute", "f32", "--quantization", "none"]
        command = [binary, "eval", "--json", "--model", given["model"], "--adapter", given["output_dir"], *rows]
        expected = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["loss"]
    if settings.get("rank_pattern"):
        command = [binary, "export", "uniform", "--adapter", str(work / "out"), "--output-dir", str(work / "uniform")]
        subprocess.run(command, check=True, capture_output=True)
        folders["uniform"] = work / "uniform"
    for what, folder in folders.items():
        model = peft.PeftModel.from_pretrained(base_model(base).float(), folder)
        taken, stored = state(model), load_file(folder / "adapter_model.safetensors")
        assert taken.keys() == stored.keys(), f"{name}: PEFT takes other tensors: {sorted(taken.keys() ^ stored.keys())}"
        loss = mean_loss(model, make_rows())
        print(f"{name}, {what}: {len(stored)} tensors; loss in PEFT {loss:.6f}, expected {expected:.6f}")
        assert abs(loss - expected) < 1e-3 * expected


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "methods")
    parser.add_argument("--heads-of-64", action="store_true")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--check", metavar="BINARY")
    parser.add_argument("--work", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if not arguments.check:
        out = arguments.out / "heads_of_64" if arguments.heads_of_64 else arguments.out
        out.mkdir(exist_ok=True)
        if arguments.heads_of_64:
            make_bases_of_64(out)
        else:
            make_base(out / "base")
            (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
    methods, bases = (METHODS_OF_64, BASES_OF_64) if arguments.heads_of_64 else (METHODS, BASES)
    for name in arguments.methods:
        if arguments.check:
            check(name, METHODS[name], arguments.check, arguments.work)
        elif name in methods:
            make(name, methods[name], bases.get(name, "qwen3"), out, arguments.heads_of_64)


if __name__ == "__main__":
    main()
