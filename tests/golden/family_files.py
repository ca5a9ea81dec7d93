"""FAMILY/: a tiny random model of a family, its logits in transformers, and loss and gradients of a LoRA step in PEFT.

    python family_files.py FAMILY [--out tests/golden/FAMILY]

Biases are as large as what they are added to, so that one left out shows. The table is tied, as in small models. A
family with DOCUMENTS has them packed into one row, with positions of their own.
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
    use_sliding_window=False,
    bos_token_id=1,
    eos_token_id=2,
)
# A family: its classes, sizes beside those above, and what has a bias.
FAMILIES = {
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}, {"q_proj", "k_proj", "v_proj"}),
    # Heads wider than the hidden size would have them.
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, dict(head_dim=12), set()),
    # The second layer is not rotated.
    "smollm3": (
        transformers.SmolLM3Config,
        transformers.SmolLM3ForCausalLM,
        dict(no_rope_layer_interval=2, pad_token_id=0),
        set(),
    ),
    "granite": (
        transformers.GraniteConfig,
        transformers.GraniteForCausalLM,
        dict(embedding_multiplier=12.0, attention_multiplier=0.2, residual_multiplier=0.22, logits_scaling=6.0),
        set(),
    ),
    "seed_oss": (
        transformers.SeedOssConfig,
        transformers.SeedOssForCausalLM,
        dict(head_dim=12, pad_token_id=0),
        {"q_proj", "k_proj", "v_proj"},
    ),
}
TOKENS, PROMPT = 23, 7
DOCUMENTS = {"smollm3": [14, 9], "granite": [14, 9], "seed_oss": [14, 9]}
RANK, ALPHA = 3, 6


def random_model(family):
    config, model_class, sizes, biased = FAMILIES[family]
    model = model_class(config(**SIZES, **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale, center = (0.1, 1.0) if "norm" in name else (0.5, 0.0) if "bias" in name else (0.15, 0.0)
            # Of the stored type, and computed with in f32.
            parameter.copy_((torch.randn(parameter.shape) * scale + center).to(torch.bfloat16))
    biases = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith("bias")}
    assert biases == biased, biases
    return model


def expected(model, documents):
    """Logits of the base, then the mean loss with random A and B and the gradients of both."""
    ids = torch.randint(3, VOCABULARY, (1, TOKENS))
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    inputs = dict(input_ids=ids, use_cache=False)
    if documents:
        assert sum(documents) == TOKENS
        inputs["position_ids"] = torch.cat([torch.arange(n) for n in documents])[None]
        # The first token of a document is nothing that the one before it leads to.
        labels[inputs["position_ids"] == 0] = -100
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0]
        alone = [model(input_ids=part, use_cache=False).logits[0] for part in ids.split(documents or TOKENS, dim=1)]
    assert (torch.cat(alone) - logits).abs().max() < 1e-5 * logits.abs().max(), "documents see each other"
    tensors = {"input_ids": ids[0], "labels": labels[0], "logits": logits}
    if documents:
        tensors["documents"] = torch.tensor(documents)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = {name.replace(".default", ""): p for name, p in lora.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    loss = lora(labels=labels, **inputs).loss
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
    save_file(expected(model, DOCUMENTS.get(family)), out / "expected.safetensors")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:9d} {path.name}")


if __name__ == "__main__":
    main()
