"""logits.json and logits.safetensors: logits of the model cut to its first layers, plain and through bitsandbytes NF4."""

import torch

import source_model

STRIDE = 97
TEXTS = (
    "The lighthouse keeper wrote down the wind, the sea and every ship that passed between two storms.",
    "<|im_start|>user\nName three things that float, and say why each of them does.<|im_end|>\n<|im_start|>assistant\n"
    "A cork, a log and an iron ship: 1) cork is full of air,",
)


def run(model, rows):
    """Tensors of one model: a strided subset of the logits, their logsumexp and argmax, and the residual stream."""
    out = {}
    with torch.no_grad():
        for i, row in enumerate(rows):
            result = model(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False)
            logits = result.logits[0]
            assert logits.dtype == torch.float32
            out[f"{i}.logits"] = logits[:, ::STRIDE]
            out[f"{i}.logsumexp"] = torch.logsumexp(logits.double(), dim=-1).float()
            out[f"{i}.argmax"] = logits.argmax(dim=-1)
            # [layers + 1, hidden]: the embedding, the stream after each layer; the last one after the final norm.
            out[f"{i}.hidden"] = torch.stack([h[0, -1] for h in result.hidden_states])
    return out


def make(model, tokenizer, layers):
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    tensors = {}
    for kind in ("plain", "nf4"):
        cut = source_model.cut(model, layers, quantized=kind == "nf4")
        tensors.update({f"{kind}.{k}": v.contiguous().clone() for k, v in run(cut, rows).items()})
    differs = (tensors["plain.0.logits"] - tensors["nf4.0.logits"]).abs().max().item()
    assert differs > 1e-2, "quantizing changed nothing: the NF4 model was not quantized"
    return {"layers": layers, "stride": STRIDE, "rows": [{"text": t, "input_ids": r} for t, r in zip(TEXTS, rows)]}, tensors
