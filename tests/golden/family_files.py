"""FAMILY/: a tiny random model of a family, its logits in transformers, and loss and gradients of a LoRA step in PEFT.

    python family_files.py FAMILY [--out tests/golden/FAMILY]

Biases are as large as what they are added to, so that one left out shows. The table is tied, as in small models. A
family with DOCUMENTS has several; they are packed into one row with positions of their own, or, where the model has a
window (APART), given to transformers one by one, because some are longer than it.
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
PHI3 = (transformers.Phi3Config, transformers.Phi3ForCausalLM)
OF_PHI3 = dict(pad_token_id=0)
MISTRAL = (transformers.MistralConfig, transformers.MistralForCausalLM)
FULL = dict(use_sliding_window=False)
# A family: its classes, sizes beside those above, and what has a bias.
FAMILIES = {
    # Low frequencies are divided, as in Llama 3.1.
    "llama": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        dict(
            pad_token_id=0,
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=100.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
        set(),
    ),
    # Queries and keys are normalized after they are rotated; the base of the rotation is stretched.
    "hunyuan_v1_dense": (
        transformers.HunYuanDenseV1Config,
        transformers.HunYuanDenseV1ForCausalLM,
        dict(head_dim=12, pad_token_id=0, rope_parameters=dict(rope_type="dynamic", rope_theta=100.0, factor=1.0, alpha=20.0)),
        set(),
    ),
    "qwen2": (*QWEN2, FULL, {"q_proj", "k_proj", "v_proj"}),
    # Heads wider than the hidden size would have them.
    "qwen3": (*QWEN3, dict(head_dim=12, **FULL), set()),
    # The first layer sees everything, the second has a window.
    "qwen3-window": (
        *QWEN3,
        dict(head_dim=12, use_sliding_window=True, sliding_window=5, max_window_layers=1),
        set(),
    ),
    "mistral": (*MISTRAL, dict(head_dim=12, sliding_window=6), set()),
    # The second layer is not rotated.
    "smollm3": (
        transformers.SmolLM3Config,
        transformers.SmolLM3ForCausalLM,
        dict(no_rope_layer_interval=2, pad_token_id=0),
        set(),
    ),
    # And has a window there.
    "smollm3-window": (
        transformers.SmolLM3Config,
        transformers.SmolLM3ForCausalLM,
        dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=5, pad_token_id=0),
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
    # A part of each head is rotated.
    "phi3": (*PHI3, dict(partial_rotary_factor=0.75, head_dim=8, **OF_PHI3), set()),
    # Long factors, as all documents are longer than the trained context; and a window.
    "phi3-long": (
        *PHI3,
        dict(
            sliding_window=9,
            original_max_position_embeddings=8,
            rope_parameters=dict(
                rope_type="longrope",
                rope_theta=10_000.0,
                short_factor=[1.0, 1.1, 1.3, 1.5],
                long_factor=[1.2, 2.0, 3.5, 7.0],
                original_max_position_embeddings=8,
            ),
            **OF_PHI3,
        ),
        set(),
    ),
    # Caps that many scores and logits come near; a window on the first layer.
    "gemma2": (
        transformers.Gemma2Config,
        transformers.Gemma2ForCausalLM,
        dict(
            head_dim=12,
            query_pre_attn_scalar=24,
            sliding_window=6,
            attn_logit_softcapping=0.6,
            final_logit_softcapping=1.5,
        ),
        set(),
    ),
    # A window on the first layer with its own rotation; scores that are not scaled by the width of a head.
    "gemma3": (
        transformers.Gemma3TextConfig,
        transformers.Gemma3ForCausalLM,
        dict(
            head_dim=12,
            query_pre_attn_scalar=24,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", rope_theta=10_000.0, factor=2.0),
                sliding_attention=dict(rope_type="default", rope_theta=500.0),
            ),
        ),
        set(),
    ),
    # Gate and up in one tensor, and no experts.
    "granitemoehybrid": (
        transformers.GraniteMoeHybridConfig,
        transformers.GraniteMoeHybridForCausalLM,
        dict(
            embedding_multiplier=12.0,
            attention_multiplier=0.2,
            residual_multiplier=0.22,
            logits_scaling=6.0,
            num_local_experts=0,
            num_experts_per_tok=0,
            shared_intermediate_size=56,
            position_embedding_type="rope",
            layer_types=["attention", "attention"],
            mamba_n_heads=2,
        ),
        set(),
    ),
    # Documents up to the trained context.
    "ministral3": (
        transformers.Ministral3Config,
        transformers.Ministral3ForCausalLM,
        dict(
            head_dim=12,
            rope_parameters=dict(
                rope_type="yarn",
                rope_theta=10_000.0,
                factor=4.0,
                beta_fast=8.0,
                beta_slow=1.0,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
                original_max_position_embeddings=16,
            ),
        ),
        set(),
    ),
    "olmo2": (transformers.Olmo2Config, transformers.Olmo2ForCausalLM, dict(pad_token_id=0), set()),
    # A window on the first layer; the second sees all, and its rotation is scaled.
    "olmo3": (
        transformers.Olmo3Config,
        transformers.Olmo3ForCausalLM,
        dict(
            pad_token_id=0,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(
                full_attention=dict(
                    rope_type="yarn",
                    rope_theta=10_000.0,
                    factor=4.0,
                    beta_fast=8.0,
                    beta_slow=1.0,
                    attention_factor=1.2,
                    original_max_position_embeddings=16,
                ),
                sliding_attention=dict(rope_type="default", rope_theta=500.0),
            ),
        ),
        set(),
    ),
}
TOKENS, PROMPT = 23, 7
APART = {"granitemoehybrid", "mistral", "qwen3-window", "smollm3-window", "olmo3", "phi3-long", "gemma2", "gemma3"}
DOCUMENTS = {
    **dict.fromkeys(sorted(APART), [17, 3, 9]),
    # Each beyond the trained context: transformers chooses the factors for each.
    "phi3-long": [17, 11, 9],
    **dict.fromkeys(["llama", "hunyuan_v1_dense", "qwen2", "qwen3", "smollm3", "granite", "seed_oss", "olmo2", "phi3", "ministral3"], [14, 9]),
}
RANK, ALPHA = 3, 6


def random_model(family, **more):
    """`more`: sizes in place of the family's."""
    config, model_class, sizes, biased = FAMILIES[family]
    model = model_class(config(**{**SIZES, **sizes, **more}))
    # Gemma's weights are less by 1.
    norm = 0.0 if family.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale, center = (0.1, norm) if "norm" in name else (0.5, 0.0) if "bias" in name else (0.15, 0.0)
            # Values of the stored type, computed with in f32.
            parameter.copy_((torch.randn(parameter.shape) * scale + center).to(torch.bfloat16))
    biases = {name.split(".")[-2] for name, _ in model.named_parameters() if name.endswith("bias")}
    assert biases == biased, biases
    return model


def rows_apart(model, documents):
    """Ids and labels of each document, and the logits of the base."""
    rows = torch.randint(3, VOCABULARY, (1, sum(documents))).split(documents, dim=1)
    labels = [ids.clone() for ids in rows]
    for targets in labels:
        targets[:, : targets.shape[1] // 3] = -100
    with torch.no_grad():
        logits = torch.cat([model.eval()(input_ids=ids, use_cache=False).logits[0] for ids in rows])
    return [dict(input_ids=ids, labels=targets) for ids, targets in zip(rows, labels)], logits


def row_packed(model, documents):
    """One row of all documents."""
    ids = torch.randint(3, VOCABULARY, (1, TOKENS))
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    row = dict(input_ids=ids)
    if documents:
        assert sum(documents) == TOKENS
        row["position_ids"] = torch.cat([torch.arange(n) for n in documents])[None]
        # The first token of a document is nothing that the one before it leads to.
        labels[row["position_ids"] == 0] = -100
    with torch.no_grad():
        logits = model.eval()(use_cache=False, **row).logits[0]
        alone = [model(input_ids=part, use_cache=False).logits[0] for part in ids.split(documents or TOKENS, dim=1)]
    assert (torch.cat(alone) - logits).abs().max() < 1e-5 * logits.abs().max(), "documents see each other"
    return [dict(labels=labels, **row)], logits


def expected(model, documents, apart):
    """Logits of the base, then the mean loss with random A and B and the gradients of both."""
    rows, logits = rows_apart(model, documents) if apart else row_packed(model, documents)
    joined = lambda key: torch.cat([row[key] for row in rows], dim=1)[0]
    tensors = {"input_ids": joined("input_ids"), "labels": joined("labels"), "logits": logits}
    if documents:
        tensors["documents"] = torch.tensor(documents)
    lora = peft.get_peft_model(
        model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    trained = {name.replace(".default", ""): p for name, p in lora.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    count = lambda targets: int((targets >= 0).sum())
    supervised = sum(count(row["labels"]) for row in rows)
    loss = sum(count(row["labels"]) / supervised * lora(use_cache=False, **row).loss for row in rows)
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
    documents = DOCUMENTS.get(family)
    save_file(expected(model, documents, family in APART), out / "expected.safetensors")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:9d} {path.name}")


if __name__ == "__main__":
    main()
