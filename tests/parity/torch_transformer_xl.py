"""Transformer-XL written out from Dai 2019, section 3.3 and appendix B, with the published names.

The published class is gone from transformers 5. This one computes each pair of query and key by
its distance, without the paper's shift, and is slow. B batch, T time, M memory, S = M + T keys,
N heads, H head width, D width.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from tests.parity.torch_folder import FolderModule, Result


def group(**children: Any) -> nn.Module:
    """A module that only holds others: a dot in their names."""
    made = nn.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def matrix(*shape: int, scale: float = 0.2) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * scale)


def block(c: Any, biases: dict[str, nn.Parameter]) -> nn.Module:
    D, inner = c.d_model, c.n_head * c.d_head
    names = {"qkv_net": (D, 3 * inner), "r_net": (D, inner), "o_net": (inner, D)}
    nets = {name: nn.Linear(*shape, bias=False) for name, shape in names.items()}
    core = nn.Sequential(nn.Linear(D, c.d_inner), nn.ReLU(), nn.Identity(), nn.Linear(c.d_inner, D))
    return group(
        dec_attn=group(**nets, layer_norm=nn.LayerNorm(D), **biases),
        pos_ff=group(CoreNet=core, layer_norm=nn.LayerNorm(D)),
    )


class TransformerXL(FolderModule):
    """TransfoXLLMHeadModel, but that a text begins without a memory.

    With cutoffs it returns log-probabilities, without them logits.
    """

    KEPT = ("transformer.r_", "transformer.")

    def __init__(self, **config: Any):
        super().__init__(**config)
        c, D = self.config, self.config.d_model
        self.ends = [0, *c.cutoffs, c.vocab_size]
        words = [high - low for low, high in itertools.pairwise(self.ends)]
        widths = [c.d_embed // c.div_val**i for i in range(len(words))]
        tables = [(c.vocab_size, c.d_embed)] if c.div_val == 1 else list(zip(words, widths))
        emb, out = [nn.Embedding(*shape) for shape in tables], []
        for one, (rows, width) in zip(emb, tables):
            one.weight = matrix(rows, width, scale=width**-0.5)
            out.append(nn.Linear(width, rows))
            own = matrix(rows, width, scale=width**-0.5)
            out[-1].weight = one.weight if c.tie_word_embeddings else own
        projected = c.div_val > 1 or c.d_embed != D
        ins = [matrix(D, width) for _, width in tables if projected]
        outs = [
            ins[min(i, len(ins) - 1)] if tied else matrix(D, widths[i])
            for i, tied in enumerate(c.tie_projs)
            if projected
        ]

        def biases() -> dict[str, nn.Parameter]:
            return {name: matrix(c.n_head, c.d_head) for name in ("r_w_bias", "r_r_bias")}

        shared = {} if c.untie_r else biases()
        waves = group()
        waves.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, D, 2) / D))
        self.transformer = group(
            word_emb=group(emb_layers=nn.ModuleList(emb), emb_projs=nn.ParameterList(ins)),
            layers=nn.ModuleList(block(c, shared or biases()) for _ in range(c.n_layer)),
            pos_emb=waves, **shared,
        )  # fmt: skip
        self.crit = group(out_layers=nn.ModuleList(out), out_projs=nn.ParameterList(outs))
        if c.cutoffs:
            self.crit.cluster_weight = matrix(len(c.cutoffs), c.d_embed)
            self.crit.cluster_bias = matrix(len(c.cutoffs))

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        word_emb, c, x = self.transformer.word_emb, self.config, 0
        ends = [0, c.vocab_size] if c.div_val == 1 else self.ends
        for i, (table, (low, high)) in enumerate(
            zip(word_emb.emb_layers, itertools.pairwise(ends), strict=True)
        ):
            row = table((tokens_BT - low).clamp(0, high - low - 1))
            row = row @ word_emb.emb_projs[i].T if len(word_emb.emb_projs) else row
            x = x + row * ((tokens_BT >= low) & (tokens_BT < high))[..., None]
        return x * c.d_model**0.5

    def layer(self, layer: nn.Module, x_BTD: torch.Tensor, memory_BMD: torch.Tensor):
        c, attn, ff = self.config, layer.dec_attn, layer.pos_ff
        T, M, heads = x_BTD.shape[1], memory_BMD.shape[1], (c.n_head, c.d_head)
        seen = torch.cat([memory_BMD, x_BTD], dim=1)
        seen = attn.layer_norm(seen) if c.pre_lnorm else seen
        q, k, v = (x.unflatten(-1, heads) for x in attn.qkv_net(seen).chunk(3, dim=-1))
        distance_TS = M + torch.arange(T)[:, None] - torch.arange(M + T)
        allowed_TS = distance_TS >= 0
        if c.same_length:
            allowed_TS &= distance_TS < c.mem_len
        clamped = distance_TS.clamp(0, c.clamp_len if c.clamp_len > 0 else None)
        angle = clamped[..., None] * self.transformer.pos_emb.inv_freq
        r_TSNH = attn.r_net(torch.cat([angle.sin(), angle.cos()], dim=-1)).unflatten(-1, heads)
        content = torch.einsum("btnh,bsnh->bnts", q[:, M:] + attn.r_w_bias, k)
        place = torch.einsum("btnh,tsnh->bnts", q[:, M:] + attn.r_r_bias, r_TSNH)
        scores = (content + place) / c.d_head**0.5
        p = scores.masked_fill(~allowed_TS, -torch.inf).softmax(-1)
        x = x_BTD + attn.o_net(torch.einsum("bnts,bsnh->btnh", p, v).flatten(2))
        if c.pre_lnorm:
            return x + ff.CoreNet(ff.layer_norm(x))
        x = attn.layer_norm(x)
        return ff.layer_norm(x + ff.CoreNet(x))

    def head(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        crit, sizes = self.crit, [high - low for low, high in itertools.pairwise(self.ends)]
        weights = [x.weight for x in crit.out_layers]
        weights = weights[0].split(sizes) if self.config.div_val == 1 else weights
        biases = torch.cat([x.bias for x in crit.out_layers]).split(sizes)
        read = [hidden_BTD @ p for p in crit.out_projs] or [hidden_BTD] * len(sizes)
        logits = [x @ w.T + b for x, w, b in zip(read, weights, biases, strict=True)]
        if len(logits) == 1:
            return logits[0]
        tails = read[0] @ crit.cluster_weight.T + crit.cluster_bias
        top = torch.cat([logits[0], tails], dim=-1).log_softmax(-1)
        parts = [x.log_softmax(-1) + top[..., sizes[0] + i, None] for i, x in enumerate(logits[1:])]
        return torch.cat([top[..., : sizes[0]], *parts], dim=-1)

    def forward(self, input_ids, attention_mask=None, mems=None) -> Result:
        """`mems`: each layer's inputs before. Padding is on the right, where no token sees it."""
        x, kept = self.embed(input_ids), []
        for i, layer in enumerate(self.transformer.layers):
            memory = x[:, :0] if mems is None else mems[i]
            seen = torch.cat([memory, x], dim=1).detach()
            kept.append(seen[:, max(0, seen.shape[1] - self.config.mem_len) :])
            x = self.layer(layer, x, memory)
        return Result(logits=self.head(x), mems=kept)

    def following(self, ids: list[int], first: int) -> Any:
        """Yields the logits [V] of what comes after ids[:first], ids[:first + 1], ... and ids.

        The first is read as one segment, and then each token is one, if there is a memory; `ids`
        may grow meanwhile.
        """
        mems, place = None, first
        while place <= len(ids):
            out = self(torch.tensor([ids[:place] if mems is None else ids[place - 1 : place]]),
                       mems=mems)  # fmt: skip
            mems, place = out.mems if self.config.mem_len else None, place + 1
            yield out.logits[0, -1]

    def generate(self, tokens, attention_mask, max_new_tokens: int, **_: Any) -> torch.Tensor:
        """Greedy, each row by itself."""
        rows = []
        for row, mask in zip(tokens, attention_mask, strict=True):
            ids = row[mask > 0].tolist()
            last = len(ids) + max_new_tokens
            for logits_V in self.following(ids, len(ids)):
                if len(ids) == last:
                    break
                ids.append(int(logits_V.argmax()))
            rows.append(torch.tensor([*row[: int((mask == 0).sum())].tolist(), *ids]))
        return torch.stack(rows)
