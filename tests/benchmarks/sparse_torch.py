"""Torch's programs for `tests.benchmarks.sparse`: transformers' own steps, and flex_attention.

Of transformers' modules the part after the projections runs: what a projection returns is given.
Each function returns (forward, step or None); step runs forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.benchmarks.sparse import BLOCK, DRAWN, GLOBAL, SIDE, H, N

Programs = tuple[Callable[[], Any], Callable[[], Any] | None]


class Given(torch.nn.Module):
    """Stands for a projection: returns what it would."""

    def __init__(self, x_BTD):
        super().__init__()
        self.x_BTD = x_BTD

    def forward(self, _):
        return self.x_BTD


def programs(leaves: list[torch.Tensor], f: Callable[..., torch.Tensor]) -> Programs:
    """f takes q, k, v of [B, T, N, H] and returns the output of that shape."""

    def forward():
        with torch.no_grad():
            return f(*leaves)

    def step():
        arrays = [x.detach().requires_grad_() for x in leaves]
        f(*arrays).square().sum().backward()
        return [x.grad for x in arrays]

    return forward, step


def longformer(leaves: list[torch.Tensor], plan: Any) -> Programs:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    T = leaves[0].shape[1]
    config = LongformerConfig(
        hidden_size=N * H, num_attention_heads=N, attention_window=[2 * SIDE],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    module = LongformerSelfAttention(config, 0)
    kind = torch.zeros(1, T)
    kind[:, :GLOBAL] = 10000.0
    nothing = torch.zeros(1, T, N * H)

    def f(q, k, v):
        for name, x in zip(("query", "key", "value"), (q, k, v), strict=True):
            x_TBD = x.reshape(1, T, N * H).transpose(0, 1)
            # The module scales its queries in place.
            setattr(module, name, Given(x_TBD.clone() if name == "query" else x_TBD))
            setattr(module, f"{name}_global", Given(x_TBD))
        # Of the queries it projects only those of global tokens.
        q_TBD = q.reshape(1, T, N * H).transpose(0, 1)
        module.query_global = Given(q_TBD[:GLOBAL].clone())
        out = module(
            nothing, attention_mask=kind, is_index_masked=kind < 0, is_index_global_attn=kind > 0,
            is_global_attn=True,
        )[0]  # fmt: skip
        return out.reshape(1, T, N, H)

    return programs(leaves, f)


def bigbird(leaves: list[torch.Tensor], plan: np.ndarray) -> Programs:
    from transformers import BigBirdConfig
    from transformers.models.big_bird import modeling_big_bird

    T = leaves[0].shape[1]
    config = BigBirdConfig(
        hidden_size=N * H, num_attention_heads=N, block_size=BLOCK, num_random_blocks=DRAWN,
        max_position_embeddings=T,
    )  # fmt: skip
    module = modeling_big_bird.BigBirdBlockSparseAttention(config, seed=0)
    module._bigbird_block_rand_mask = lambda *_, **__: next(heads)
    module._bigbird_block_rand_mask_with_head = lambda **_: list(plan)
    make = modeling_big_bird.BigBirdModel.create_masks_for_block_sparse_attn
    blocked, band, rows, keys = make(torch.ones(1, T), BLOCK)
    nothing = torch.zeros(1, T, N * H)

    def f(q, k, v):
        nonlocal heads
        heads = iter(plan)  # one head after the other asks for its plan
        for name, x in zip(("query", "key", "value"), (q, k, v), strict=True):
            setattr(module, name, Given(x.reshape(1, T, N * H)))
        out = module(nothing, band, rows, keys, blocked, blocked)[0]
        return out.reshape(1, T, N, H)

    heads = iter(plan)
    return programs(leaves, f)


def window(leaves: list[torch.Tensor], plan: Any) -> Programs:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    T = leaves[0].shape[1]
    near = create_block_mask(
        lambda b, h, q, k: (q - k).abs() <= SIDE, None, None, T, T, device="cpu"
    )
    flex = torch.compile(flex_attention)
    # Heads first in memory, as it wants them.
    leaves = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in leaves]

    def f(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flex(q, k, v, block_mask=near).transpose(1, 2)

    # On a CPU it has no backward; asked for one, it is slow from then on.
    return programs(leaves, f)[0], None
