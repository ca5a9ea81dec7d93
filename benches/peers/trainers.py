"""The processes that are measured beside qlora-train: one trainer, one model, one set of rows, a number of steps.

    python trainers.py peft|unsloth SETTINGS_JSON

prints one JSON object: loss and seconds of each step, the trainable parameters, and torch's own count of the GPU's memory.
"""

import json
import pathlib
import sys
import time

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_peft(torch, settings):
    """Transformers with bitsandbytes' NF4 base, or the model as it is, and PEFT's adapter on it."""
    import peft
    import transformers

    compute = getattr(torch, settings["compute"])
    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    quantization = {"quantization_config": nf4} if settings["quantization"] == "nf4" else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings["model"], **quantization, dtype=compute, device_map={"": settings["device"]}
    )
    for module in model.modules():
        # On processors with avx512_bf16 bitsandbytes would repack the weight for inference and lose gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if settings["recompute"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    lora = peft.LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=MODULES,
        task_type="CAUSAL_LM",
        bias="none",
    )
    return peft.get_peft_model(model, lora)


def load_unsloth(torch, settings):
    """Unsloth's patched model, by its own loader."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        model_name=settings["model"],
        max_seq_length=settings["length"],
        dtype=getattr(torch, settings["compute"]),
        load_in_4bit=True,
    )
    return FastLanguageModel.get_peft_model(
        model,
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules=MODULES,
        bias="none",
        use_gradient_checkpointing="unsloth" if settings["recompute"] else False,
    )


def optimizer_of(torch, settings, parameters):
    if settings["optim"] == "adamw_8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, lr=settings["rate"], weight_decay=0.0)
    return torch.optim.AdamW(parameters, lr=settings["rate"], weight_decay=0.0)


def main():
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    load = {"peft": load_peft, "unsloth": load_unsloth}[name]
    if name == "unsloth":
        import unsloth  # noqa: F401  It patches the others, so it comes before them.
    import torch

    device = settings["device"]
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(42)
    model = load(torch, settings)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(torch, settings, parameters)
    rows = [json.loads(line)["input_ids"] for line in pathlib.Path(settings["rows"]).read_text().splitlines()]
    ids = torch.tensor(rows, device=device)
    losses, seconds = [], []
    for _ in range(settings["steps"]):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    result = {"losses": losses, "step_seconds": seconds, "trainable": sum(p.numel() for p in parameters)}
    if device == "cuda":
        result["torch_reserved_bytes"] = torch.cuda.max_memory_reserved()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
