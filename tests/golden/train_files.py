"""train_*.json and train_*.safetensors: 20 LoRA training steps in f32 with PEFT on the cut model, four ways.

Bases: bitsandbytes' NF4 with double quantization, and the same weights double-quantized by the project's own rules and
plugged in as plain f32 layers. Optimizers: torch's AdamW, and PEFT's LoRA+ around it.
"""

import json
import pathlib

import bitsandbytes
import peft
import torch
import transformers
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file

import nf4_files
import source_model

STEPS = 20
SEED = 20
RANK, ALPHA = 4, 8
BETAS, EPS, CLIP = (0.9, 0.999), 1e-8, 1.0
RUNS = {
    "train": {"own_base": False, "loraplus": False},
    "train_loraplus": {"own_base": False, "loraplus": True},
    "train_own_base": {"own_base": True, "loraplus": False},
    "train_loraplus_own_base": {"own_base": True, "loraplus": True},
}
PLAIN = {"learning_rate": 2e-3, "weight_decay": 0.0, "schedule": "cosine", "warmup_steps": 2, "loraplus_lr_ratio": 1}
LORAPLUS = {
    "learning_rate": 5e-4,
    # Large enough that a tensor left out of the decay shows (differences.json says by how much).
    "weight_decay": 0.1,
    "schedule": "constant_with_warmup",
    "warmup_steps": 3,
    "loraplus_lr_ratio": 16,
}


def rows_and_steps(tokenizer):
    """40 rows (even: a long answer, odd: a long prompt and a short answer) and which of them each micro-batch takes."""
    texts = [json.loads(line) for line in (pathlib.Path(__file__).parent / "texts.jsonl").read_text().splitlines()]
    rows = []
    for t in texts:
        pairs = ((f"Explain {t['topic']}.", t["text"]), (f"{t['text']}\n{t['question']}", t["answer"]))
        for user, assistant in pairs:
            prompt = tokenizer(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
            answer = tokenizer(f"{assistant}<|im_end|>\n")["input_ids"]
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    count = len(texts) // 2
    # Step s takes two long answers in its first micro-batch and two short ones, of other texts, in its second.
    steps = []
    for s in range(STEPS):
        a, b = 2 * (s % count), 2 * ((3 * s + 4) % count)
        steps.append([[2 * a, 2 * (a + 1)], [2 * b + 1, 2 * (b + 1) + 1]])
    return rows, steps


def padded(rows):
    """The rows as one batch, padded on the right; the attention mask is zero and the label -100 there."""
    width = max(len(r["input_ids"]) for r in rows)
    fill = lambda values, pad: values + [pad] * (width - len(values))
    ids = torch.tensor([fill(r["input_ids"], 0) for r in rows])
    labels = torch.tensor([fill(r["labels"], -100) for r in rows])
    mask = torch.tensor([fill([1] * len(r["input_ids"]), 0) for r in rows])
    return ids, labels, mask


def base_model(model, layers, own_base):
    if not own_base:
        return source_model.cut(model, layers, quantized=True)
    plain = source_model.cut(model, layers)
    with torch.no_grad():
        for _, module in source_model.linears(plain):
            module.weight.copy_(nf4_files.own_double_quantization(module.weight.data)[-1])
    return plain


def with_lora(base):
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(SEED)
    return peft.get_peft_model(base, config)


def optimizer_and_schedule(model, settings, loraplus):
    if loraplus:
        optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=settings["learning_rate"],
            loraplus_lr_ratio=settings["loraplus_lr_ratio"],
            loraplus_weight_decay=settings["weight_decay"],
            betas=BETAS,
            eps=EPS,
        )
    else:
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trainable, lr=settings["learning_rate"], betas=BETAS, eps=EPS, weight_decay=settings["weight_decay"]
        )
    schedule = transformers.get_scheduler(
        settings["schedule"], optimizer, num_warmup_steps=settings["warmup_steps"], num_training_steps=STEPS
    )
    return optimizer, schedule


def learning_rates(model, optimizer):
    """(rate of every A, rate of every B) as the optimizer holds them now."""
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    pick = lambda part: {rate[id(p)] for n, p in model.named_parameters() if part in n}
    (of_a,), (of_b,) = pick("lora_A"), pick("lora_B")
    return of_a, of_b


def weight_decays(model, optimizer):
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    pick = lambda part: {decay[id(p)] for n, p in model.named_parameters() if part in n}
    (of_a,), (of_b,) = pick("lora_A"), pick("lora_B")
    return of_a, of_b


def norm(parameters):
    return torch.stack([p.grad.double().norm() for p in parameters]).norm().item()


def adapter_state(model):
    return {name: tensor.detach().clone().contiguous() for name, tensor in peft.get_peft_model_state_dict(model).items()}


def train(model, settings, loraplus, rows, steps):
    optimizer, schedule = optimizer_and_schedule(model, settings, loraplus)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    part = lambda name: [p for n, p in named if name in n]
    records = []
    assert weight_decays(model, optimizer) == (settings["weight_decay"], settings["weight_decay"])
    model.train()
    for index, micro_batches in enumerate(steps):
        batches = [padded([rows[i] for i in micro]) for micro in micro_batches]
        supervised = [int((labels[:, 1:] != -100).sum()) for _, labels, _ in batches]
        sums = []
        for ids, labels, mask in batches:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            assert logits.dtype == torch.float32
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum"
            )
            (loss / sum(supervised)).backward()
            sums.append(loss.item())
        # A stays without gradient until B has left zero; from then on every tensor must have one, block 0 included.
        for name, parameter in named:
            if "lora_B" in name or index > settings["warmup_steps"]:
                assert parameter.grad.abs().max() > 0, f"step {index + 1}: no gradient reached {name}"
        record = {
            "loss": sum(sums) / sum(supervised),
            "loss_sums": sums,
            "supervised_tokens": supervised,
            "grad_norm_a": norm(part("lora_A")),
            "grad_norm_b": norm(part("lora_B")),
            "grad_norm": norm([p for _, p in named]),
        }
        record["learning_rate_a"], record["learning_rate_b"] = learning_rates(model, optimizer)
        torch.nn.utils.clip_grad_norm_([p for _, p in named], CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        records.append(record)
    return records


def cosine(x, y):
    x, y = x.double().flatten(), y.double().flatten()
    return float(x @ y / (x.norm() * y.norm()))


def compare(first, second, init):
    """Distance of two runs: of losses, and for the changes of all A and of all B (final minus initial) the cosine, that
    of the worst tensor, and the norm of the difference over the norm of the first run's change."""
    a, b = first["records"], second["records"]
    out = {"largest_relative_loss_difference": max(abs(x["loss"] - y["loss"]) / x["loss"] for x, y in zip(a, b))}
    for part in ("lora_A", "lora_B"):
        names = [n for n in init if part in n]
        change = lambda run, n: run["final"][n] - init[n]
        every = lambda run: torch.cat([change(run, n).flatten() for n in names])
        out[f"{part}_cosine"] = cosine(every(first), every(second))
        out[f"{part}_relative_difference"] = float((every(first) - every(second)).norm() / every(first).norm())
        out[f"{part}_cosine_worst_tensor"] = min(cosine(change(first, n), change(second, n)) for n in names)
    return out


def trap_closes_gradients(model, layers, rows):
    """On a CPU with avx512_bf16: whether one forward in eval mode, flag left on, loses the gradients of block 0.

    None where the processor has no such instructions and the question does not arise.
    """
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        return None
    lora = with_lora(base_model(model, layers, own_base=False))
    ids = torch.tensor([rows[1]["input_ids"]])
    reached = {}
    for flag in (False, True):
        for module in lora.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = flag
        lora.eval()
        with torch.no_grad():
            lora(input_ids=ids)
        lora.train()
        lora.zero_grad()
        lora(input_ids=ids, labels=ids).loss.backward()
        first = [p for n, p in lora.named_parameters() if "layers.0." in n and "lora_B" in n]
        reached[flag] = sum(p.grad is not None and bool(p.grad.abs().max() > 0) for p in first)
    assert reached[False] == len(first) == 7, "gradients of block 0 are missing with the flag off"
    return {"block_0_tensors": len(first), "with_gradient_flag_off": reached[False], "with_gradient_flag_on": reached[True]}


def make(model, tokenizer, layers, out, write_json):
    rows, steps = rows_and_steps(tokenizer)
    (out / "train_rows.json").write_text(json.dumps({"rows": rows, "steps": steps}) + "\n")
    init, results = None, {}
    for name, kind in RUNS.items():
        settings = LORAPLUS if kind["loraplus"] else PLAIN
        lora = with_lora(base_model(model, layers, kind["own_base"]))
        start = adapter_state(lora)
        init = start if init is None else init
        assert all(torch.equal(init[n], start[n]) for n in start) and init.keys() == start.keys()
        assert all(t.abs().max() == 0 for n, t in init.items() if "lora_B" in n)
        records = train(lora, settings, kind["loraplus"], rows, steps)
        results[name] = {"records": records, "final": adapter_state(lora)}
        fixed = {
            "layers": layers, "lora_r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "max_grad_norm": CLIP,
            "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": EPS,
            "base": "own double quantization" if kind["own_base"] else "bitsandbytes NF4, double quantization",
        }  # fmt: skip
        write_json(out / f"{name}.json", {"settings": {**fixed, **settings}, "steps": records})
        save_file(results[name]["final"], out / f"{name}.safetensors")
    save_file({n: t for n, t in init.items() if "lora_A" in n}, out / "train_init.safetensors")

    def variant(settings, loraplus, threads=2):
        torch.set_num_threads(threads)
        lora = with_lora(base_model(model, layers, own_base=False))
        records = train(lora, settings, loraplus, rows, steps)
        torch.set_num_threads(2)
        return {"records": records, "final": adapter_state(lora)}

    # The size of differences that mean nothing (threads), and of one that a test has to see (no weight decay).
    one_thread = variant(PLAIN, False, threads=1)
    no_decay = variant({**LORAPLUS, "weight_decay": 0.0}, True)
    facts = {
        "train: own base against bitsandbytes": compare(results["train"], results["train_own_base"], init),
        "train_loraplus: own base against bitsandbytes": compare(
            results["train_loraplus"], results["train_loraplus_own_base"], init
        ),
        "train: one thread against two": compare(results["train"], one_thread, init),
        "train_loraplus: no weight decay against 0.1": compare(results["train_loraplus"], no_decay, init),
        "avx512_bf16 repacking": trap_closes_gradients(model, layers, rows),
    }
    write_json(out / "differences.json", facts)
    print(json.dumps(facts, indent=1))
