"""Transformer-XL (Dai 2019): a decoder with a memory, adaptive input and adaptive softmax.

The class, TransfoXLLMHeadModel, left transformers with version 5; 4.57 still reads such a folder.
It begins a text with a memory of zeros, to which it attends; ours begins with none, as the paper's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxformer.errors import UserError
from jaxformer.interop.family import HF, Family, architecture, setting, sizes
from jaxformer.interop.table import (
    LINEAR,
    LINEAR_FROM_HEADS,
    Rule,
    constant,
    linear,
    norm,
    part,
)
from jaxformer.models.transformer_xl import Config

ARCHITECTURES = ("TransfoXLLMHeadModel",)


def read_config(hf: HF, names: frozenset[str]) -> Config:
    """Returns our config of a config.json."""
    architecture(hf, ARCHITECTURES)
    setting(hf, "attn_type", 0, default=0)
    setting(hf, "sample_softmax", -1, 0, default=-1)
    setting(hf, "ext_len", 0, default=0)  # in files before transformers 4
    shape: dict[str, Any] = sizes(
        {"vocab_size": hf.get("n_token"), **hf}, vocab_size="vocab_size", width="d_model",
        num_layers="n_layer", num_heads="n_head", head_dim="d_head", feed_forward="d_inner",
        embedding_size="d_embed", div_val="div_val",
    )  # fmt: skip
    memory = max(0, setting(hf, "mem_len", default=1600))
    same = bool(setting(hf, "same_length", default=True))
    if same and not memory:
        raise UserError("config.json: same_length is True, so mem_len must be above 0")
    cutoffs = tuple(setting(hf, "cutoffs", default=(20000, 40000, 200000)))
    return Config(
        **shape,
        norm_position="pre" if setting(hf, "pre_lnorm", default=False) else "post",
        untie_r=bool(setting(hf, "untie_r", default=True)),
        cutoffs=cutoffs,
        memory_length=memory,
        same_length=same,
        clamp_length=max(0, setting(hf, "clamp_len", default=1000)),
        norm_epsilon=float(setting(hf, "layer_norm_epsilon", default=1e-5)),
        share_projections=_shared(hf, len(cutoffs)),
        tie_embeddings=bool(
            setting(hf, "tie_word_embeddings", default=setting(hf, "tie_weight", default=True))
        ),
        dropout=hf.get("dropout", 0.1),
        attention_dropout=hf.get("dropatt", 0.0),
        init_std=hf.get("init_std", 0.02),
    )


def _shared(hf: HF, tails: int) -> bool:
    """Returns whether tails share their projections; the head never does."""
    share = bool(setting(hf, "proj_share_all_but_first", default=True))
    tied = setting(hf, "tie_projs", default=[False] + [share] * tails)
    if tied not in ([False] + [True] * tails, [False] * (1 + tails)):
        raise UserError(
            f"config.json: tie_projs is {tied!r}; supported: false for the head, and true or false "
            f"for all {tails} tails (cutoffs) alike"
        )
    return any(tied) if tails else share


def write_config(config: Config) -> dict[str, Any]:
    """Returns the config.json of our config."""
    return {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "transfo-xl",
        "vocab_size": config.vocab_size,
        "cutoffs": list(config.cutoffs),
        "d_model": config.width,
        "d_embed": config.embedding_size or config.width,
        "n_head": config.num_heads,
        "d_head": config.per_head,
        "d_inner": config.feed_forward_width,
        "div_val": config.div_val,
        "pre_lnorm": config.norm_position == "pre",
        "n_layer": config.num_layers,
        "mem_len": config.memory_length,
        "clamp_len": config.clamp_length or -1,
        "same_length": config.same_length,
        "proj_share_all_but_first": config.share_projections,
        "tie_projs": [False] + [config.share_projections] * len(config.cutoffs),
        "attn_type": 0,
        "sample_softmax": -1,
        "adaptive": bool(config.cutoffs),
        "dropout": config.dropout,
        "dropatt": config.attention_dropout,
        "untie_r": config.untie_r,
        "init_std": config.init_std,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }


def table(config: Config) -> tuple[Rule, ...]:
    """Returns the rules of all parameters."""
    at, attention, feed = "transformer.layers.{layer}.", "layers/attention/", "layers/feed_forward/"
    qkv = at + "dec_attn.qkv_net.weight"
    rules = [
        *(Rule(qkv, attention + name, part(LINEAR, i, 3)) for i, name in enumerate("qkv")),
        Rule(at + "dec_attn.r_net.weight", attention + "r", LINEAR),
        Rule(at + "dec_attn.o_net.weight", attention + "out", LINEAR_FROM_HEADS),
        *norm(at + "dec_attn.layer_norm", "layers/attention_norm"),
        *linear(at + "pos_ff.CoreNet.0", feed + "in", feed + "in_bias"),
        *linear(at + "pos_ff.CoreNet.3", feed + "out", feed + "out_bias"),
        *norm(at + "pos_ff.layer_norm", "layers/feed_forward_norm"),
    ]
    for name in ("r_w_bias", "r_r_bias"):
        if config.untie_r:
            rules.append(Rule(f"{at}dec_attn.{name}", attention + name))
            continue
        # One parameter of all layers, which the published class looks for under each one's name.
        rules.append(Rule(f"transformer.{name}", f"relative/{name}"))
        for layer in range(config.num_layers):
            each = f"transformer.layers.{layer}.dec_attn.{name}"
            rules.append(Rule(each, f"relative/{name}", use="copy"))
    return (*rules, *_words(config))


def _words(config: Config) -> list[Rule]:
    """Returns the rules of the tables, of their projections, and of the head."""
    several, clusters = config.div_val > 1, len(config.words.clusters)
    projected = several or config.embedding_size not in (0, config.width)
    rules = []
    for i in range(clusters if several else 1):
        end = f"_{i}" if several else ""
        inputs, outputs = f"transformer.word_emb.emb_layers.{i}", f"crit.out_layers.{i}"
        rules += [
            Rule(f"{inputs}.weight", f"embed/tokens{end}"),
            Rule(f"{outputs}.bias", f"head/bias{end}"),
            Rule(f"{outputs}.weight", f"embed/tokens{end}", use="read")
            if config.tie_embeddings
            else Rule(f"{outputs}.weight", f"head/table{end}"),
        ]
        if projected:
            projection = f"transformer.word_emb.emb_projs.{i}"
            rules.append(Rule(projection, f"embed/projection{end}", LINEAR))
    for i in range(clusters if projected else 0):
        name, end = f"crit.out_projs.{i}", f"_{i}" if several else ""
        if i and config.share_projections:
            rules.append(Rule(name, f"embed/projection{end}", LINEAR, use="read"))
        else:
            rules.append(Rule(name, f"head/projection_{i}"))
    if config.cutoffs:
        rules.append(Rule("crit.cluster_weight", "head/cluster"))
        rules.append(Rule("crit.cluster_bias", "head/cluster_bias"))
    # Not trained, but among the weights that the published class expects.
    waves = 1 / 10000.0 ** (np.arange(0, config.width, 2) / config.width)
    any_path = "head/bias_0" if several else "head/bias"
    rules.append(Rule("transformer.pos_emb.inv_freq", any_path, constant(waves), use="write"))
    return rules


FAMILY = Family(
    "transfo-xl", Config, ARCHITECTURES, read_config, write_config, table,
    prefix="transformer.",
)  # fmt: skip
