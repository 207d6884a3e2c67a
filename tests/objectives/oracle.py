"""Published weights as trees of ours, for the losses: BERT's kin, T5 and XLNet."""

from __future__ import annotations

import numpy as np

V, D, N, L, T = 61, 24, 4, 2, 12


def randomise(model) -> dict[str, np.ndarray]:
    """Makes every parameter, norms and biases too, random; returns them by name."""
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.eval()
    return {name: leaf.detach().numpy() for name, leaf in model.state_dict().items()}


def linear(weights, name: str, kernel: str = "kernel", bias: str = "bias") -> dict[str, np.ndarray]:
    return {kernel: weights[name + ".weight"].T, bias: weights[name + ".bias"]}


def norm(weights, name: str) -> dict[str, np.ndarray]:
    return {"scale": weights[name + ".weight"], "bias": weights[name + ".bias"]}


def stack(layers: list[dict]) -> dict:
    if isinstance(layers[0], dict):
        return {name: stack([layer[name] for layer in layers]) for name in layers[0]}
    return np.stack(layers)


def bert(weights, prefix: str = "bert", num_heads: int = N) -> dict:
    """The tree of a BertModel or ElectraModel, without heads."""

    def layer(i: int) -> dict:
        at = f"{prefix}.encoder.layer.{i}."
        attention = {}
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
            weight = weights[at + f"attention.self.{theirs}.weight"]
            attention[ours] = weight.T.reshape(len(weight), num_heads, -1)
            bias = weights[at + f"attention.self.{theirs}.bias"]
            attention[f"{ours}_bias"] = bias.reshape(num_heads, -1)
        out = weights[at + "attention.output.dense.weight"]
        attention["out"] = out.T.reshape(num_heads, -1, len(out))
        attention["out_bias"] = weights[at + "attention.output.dense.bias"]
        return {
            "attention": attention,
            "attention_norm": norm(weights, at + "attention.output.LayerNorm"),
            "feed_forward": linear(weights, at + "intermediate.dense", "in", "in_bias")
            | linear(weights, at + "output.dense", "out", "out_bias"),
            "feed_forward_norm": norm(weights, at + "output.LayerNorm"),
        }

    at = f"{prefix}.embeddings."
    embed = {
        "tokens": weights[at + "word_embeddings.weight"],
        "positions": weights[at + "position_embeddings.weight"],
        "token_types": weights[at + "token_type_embeddings.weight"],
        "norm": norm(weights, at + "LayerNorm"),
    }
    project = f"{prefix}.embeddings_project"
    if project + ".weight" in weights:
        embed |= linear(weights, project, "projection", "projection_bias")
    return {"embed": embed, "layers": stack([layer(i) for i in range(L)])}


def masked_head(weights, transform: str, table: str, layer_norm: str) -> dict:
    head = linear(weights, transform, "kernel", "kernel_bias")
    return head | {"norm": norm(weights, layer_norm), "bias": weights[table + ".bias"]}


def t5(weights) -> dict:
    """The tree of a T5ForConditionalGeneration with tied embeddings."""

    def attention(at: str) -> dict:
        one = {n: weights[f"{at}.{n}.weight"].T for n in "qkvo"}
        split = {n: one[n].reshape(len(one[n]), N, -1) for n in "qkv"}
        return split | {"out": one["o"].reshape(N, -1, one["o"].shape[1])}

    def side(name: str) -> dict:
        names = ["attention", "cross_attention"] if name == "decoder" else ["attention"]

        def layer(i: int) -> dict:
            at, made = f"{name}.block.{i}.layer.", {}
            for j, ours in enumerate(names):
                made[ours] = attention(at + f"{j}.{('SelfAttention', 'EncDecAttention')[j]}")
                made[f"{ours}_norm"] = {"scale": weights[at + f"{j}.layer_norm.weight"]}
            j = len(names)
            made["feed_forward"] = {
                "in": weights[at + f"{j}.DenseReluDense.wi.weight"].T,
                "out": weights[at + f"{j}.DenseReluDense.wo.weight"].T,
            }
            made["feed_forward_norm"] = {"scale": weights[at + f"{j}.layer_norm.weight"]}
            return made

        first = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {
            "layers": stack([layer(i) for i in range(L)]),
            "relative": {"relative_bias": weights[first]},
            "final_norm": {"scale": weights[f"{name}.final_layer_norm.weight"]},
        }

    sides = {name: side(name) for name in ("encoder", "decoder")}
    return {"embed": {"tokens": weights["shared.weight"]}, **sides}


def xlnet(weights) -> dict:
    """The tree of an XLNetLMHeadModel."""
    names = {"q": "q", "k": "k", "v": "v", "r": "r", "segment_bias": "seg_embed"}
    names |= {name: name for name in ("r_w_bias", "r_r_bias", "r_s_bias")}

    def layer(i: int) -> dict:
        at = f"transformer.layer.{i}."
        attention = {ours: weights[at + "rel_attn." + name] for ours, name in names.items()}
        attention["out"] = weights[at + "rel_attn.o"].transpose(1, 2, 0)
        return {
            "attention": attention,
            "attention_norm": norm(weights, at + "rel_attn.layer_norm"),
            "feed_forward": linear(weights, at + "ff.layer_1", "in", "in_bias")
            | linear(weights, at + "ff.layer_2", "out", "out_bias"),
            "feed_forward_norm": norm(weights, at + "ff.layer_norm"),
        }

    table, mask_11D = (weights[f"transformer.{n}"] for n in ("word_embedding.weight", "mask_emb"))
    return {
        "embed": {"tokens": table, "mask": mask_11D[0, 0]},
        "layers": stack([layer(i) for i in range(L)]),
        "head": {"bias": weights["lm_loss.bias"]},
    }
