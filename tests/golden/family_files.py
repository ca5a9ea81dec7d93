"""FAMILY/: a tiny random model of a family, its logits in transformers, and loss and gradients of a LoRA step in PEFT.

    python family_files.py FAMILY [--out tests/golden/FAMILY]

Biases are as large as what they are added to, so that one left out shows. The table is tied, as in small models. A
model with a window has several documents, some longer than it: transformers gets them one by one.
"""

import argparse
import pathlib

import peft
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
VOCABULARY = 48
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
QWEN2 = (transformers.Qwen2Config, transformers.Qwen2ForCausalLM)
QWEN3 = (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)
MISTRAL = (transformers.MistralConfig, transformers.MistralForCausalLM)
FULL = dict(use_sliding_window=False)
# A family: its classes, sizes beside those above, what has a bias, and the lengths of the documents.
FAMILIES = {
    "qwen2": (*QWEN2, FULL, {"q_proj", "k_proj", "v_proj"}, (23,)),
    # Heads wider than the hidden size would have them.
    "qwen3": (*QWEN3, dict(head_dim=12, **FULL), set(), (23,)),
    # The first layer sees everything, the second has a window.
    "qwen3-window": (
        *QWEN3,
        dict(head_dim=12, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        set(),
        (17, 3, 9),
    ),
    "mistral": (*MISTRAL, dict(head_dim=12, sliding_window=6), set(), (17, 3, 9)),
}
RANK, ALPHA = 3, 6


def random_model(family):
    config, model_class, sizes, biased, _ = FAMILIES[family]
    model = model_class(config(**SIZES, **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale, center = (0.1, 1.0) if "norm" in name else (0.5, 0.0) if "bias" in name else (0.15, 0.0)
            # Of the stored type, and computed with in f32.
            parameter.copy_((torch.randn(parameter.shape) * scale + center).to(torch.bfloat16))
    biases = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith("bias")}
    assert biases == biased, biases
    return model


def expected(model, lengths):
    """Logits of the base, then the mean loss with random A and B and the gradients of both."""
    documents = torch.randint(3, VOCABULARY, (1, sum(lengths))).split(lengths, dim=1)
    labels = [ids.clone() for ids in documents]
    for targets in labels:
        targets[:, : targets.shape[1] // 3] = -100
    with torch.no_grad():
        logits = torch.cat([model.eval()(input_ids=ids, use_cache=False).logits[0] for ids in documents])
    tensors = {"input_ids": torch.cat(documents, dim=1)[0], "labels": torch.cat(labels, dim=1)[0], "logits": logits}
    if len(lengths) > 1:
        tensors["lengths"] = torch.tensor(lengths)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = {name.replace(".default", ""): p for name, p in lora.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    supervised = sum(int((targets >= 0).sum()) for targets in labels)
    loss = 0.0
    for ids, targets in zip(documents, labels):
        share = int((targets >= 0).sum()) / supervised
        loss = loss + share * lora(input_ids=ids, labels=targets, use_cache=False).loss
    loss.backward()
    tensors["loss"] = loss.detach().reshape(1)
    for name, parameter in trained.items():
        assert parameter.grad.abs().max() > 0, name
        tensors[f"value.{name}"], tensors[f"gradient.{name}"] = parameter.detach(), parameter.grad
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    family, out = arguments.family, arguments.out or HERE / arguments.family
    torch.set_num_threads(2)
    torch.manual_seed(2)
    random_model(family).to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    # Read back: the model that was cast to bf16 has rotary frequencies that were cast too.
    model = FAMILIES[family][1].from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    save_file(expected(model, list(FAMILIES[family][4])), out / "expected.safetensors")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:9d} {path.name}")


if __name__ == "__main__":
    main()
