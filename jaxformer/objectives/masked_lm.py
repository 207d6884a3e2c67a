"""Masked language modelling: 15 % of the tokens are hidden and predicted (Devlin 2019, 3.1).

The choice of tokens is made anew at every step (dynamic masking, Liu 2019), on the device, from
the step's key and the row's number, so that it is the same however the batch is split.

B batch, T time, P predicted tokens a row, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives.likelihood import predict
from jaxformer.objectives.shared import Batch, checked, dropout_key, mean

FAMILIES = ("encoder",)
LAYOUTS = ("windows", "packed", "padded")
PREDICTS_TEXT = True


@dataclasses.dataclass(frozen=True)
class Config:
    """rate: the part of a row's tokens that is predicted; of these `mask` become [MASK], `random`
    another token, and the rest stay. z_loss: weight of log(Z)^2. chunk: predictions whose logits
    are held at once (0: by vocabulary and platform)."""

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    z_loss: float = 0.0
    chunk: int = 0

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise UserError(f"objective.rate={self.rate} must be between 0 and 1; BERT's is 0.15")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise UserError(
                f"objective.mask={self.mask} and objective.random={self.random} must be at least 0 "
                "and at most 1 together; BERT's are 0.8 and 0.1"
            )


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {"masked_head": True}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens [B, T], segment_ids [B, T], rows [B]."""
    require_mask(info, "masked_lm")

    @checked()
    def loss_fn(params, batch, key: jax.Array, train: bool):
        _, (total, count, correct) = fill_in(config, model, info, params, batch, key, train)
        return mean(total, count), {"loss": (total, count), "accuracy": (correct, count)}

    return loss_fn


def fill_in(
    config: Config, model: Model, info: Any, params: Any, batch: Batch, key: jax.Array, train: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Hides tokens and predicts them.

    Returns:
      (hidden_BTD of the row with tokens hidden, (loss sum, count, hits) of the hidden ones).
    """
    mask_key, model_key = jax.random.split(key)
    corrupted_BT, where_BP, labels_BP, weights_BP = corrupt(
        batch, mask_key, config,
        mask_id=info.mask_id, special_ids=info.special_ids, vocab_size=info.vocab_size,
    )  # fmt: skip
    drop = dropout_key(model_key, batch) if train else None
    hidden_BTD = model.apply(params, {**batch, "tokens": corrupted_BT}, key=drop).hidden_BTD
    sums = predict(
        model, params, at(hidden_BTD, where_BP), labels_BP, weights_BP,
        z_loss=config.z_loss if train else 0.0, chunk=config.chunk,
    )  # fmt: skip
    return hidden_BTD, sums


def require_mask(info: Any, objective: str) -> None:
    """Raises UserError if the tokenizer has no mask token."""
    if info.mask_id < 0:
        raise UserError(
            f"objective.name={objective} needs a tokenizer with a mask token; use data.tokenizer="
            "wordpiece:8000, bpe:8000, or a tokenizer.json that has one"
        )


def at(hidden_BTD: jax.Array, where_BP: jax.Array) -> jax.Array:
    """Returns the hidden states [B, P, D] at the places that are predicted."""
    return jnp.take_along_axis(hidden_BTD, where_BP[..., None], axis=1)


def corrupt(
    batch: Batch,
    key: jax.Array,
    config: Config,
    *,
    mask_id: int,
    special_ids: tuple[int, ...],
    vocab_size: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Hides tokens of each row; never padding, never a special token.

    Args:
      batch: tokens [B, T]; optionally segment_ids [B, T] (0 is padding) and rows [B] (each row's
        number in the global batch).
      key: the step's key; row r draws from fold_in(key, r).
      config: rates.
      mask_id: the id of [MASK].
      special_ids: ids that are never hidden, and never drawn as a random token.
      vocab_size: V.

    Returns:
      (tokens_BT with tokens replaced, where_BP positions predicted, labels_BP the tokens that
      stood there, weights_BP 1.0 where a prediction is real). P = ceil(rate * T); a row with n
      tokens that may be hidden predicts round(rate * n) of them, and at least one.
    """
    tokens_BT = batch["tokens"]
    B, T = tokens_BT.shape
    P = math.ceil(config.rate * T)
    rows_B = batch.get("rows", jnp.arange(B))
    allowed_BT = may_hide(batch, mask_id, special_ids)
    wanted_B = predictions(allowed_BT, config.rate)
    ordinary = jnp.array([i for i in range(vocab_size) if i not in {mask_id, *special_ids}])

    def one(tokens_T, allowed_T, wanted, row):
        order_key, kind_key, token_key = jax.random.split(jax.random.fold_in(key, row), 3)
        scores_T = jnp.where(allowed_T, jax.random.uniform(order_key, (T,)), -1.0)
        _, where_P = jax.lax.top_k(scores_T, P)
        real_P = jnp.arange(P) < wanted
        labels_P = tokens_T[where_P]
        kind_P = jax.random.uniform(kind_key, (P,))
        random_P = jax.random.choice(token_key, ordinary, (P,)).astype(tokens_T.dtype)
        new_P = jnp.where(kind_P < config.mask + config.random, random_P, labels_P)
        new_P = jnp.where(kind_P < config.mask, mask_id, new_P)
        new_P = jnp.where(real_P, new_P, labels_P)
        return tokens_T.at[where_P].set(new_P), where_P, labels_P, real_P.astype(jnp.float32)

    return jax.vmap(one)(tokens_BT, allowed_BT, wanted_B, rows_B)


def may_hide(batch: Batch, mask_id: int, special_ids: tuple[int, ...]) -> jax.Array:
    """Returns True for the tokens [B, T] that are neither special nor padding."""
    special = jnp.array(sorted({mask_id, *special_ids}), jnp.int32)
    allowed_BT = ~jnp.isin(batch["tokens"], special)
    return allowed_BT & (batch["segment_ids"] != 0) if "segment_ids" in batch else allowed_BT


def predictions(allowed_BT: jax.Array, rate: float) -> jax.Array:
    """Returns how many tokens of each row [B] are predicted, as float32."""
    n_B = allowed_BT.sum(axis=1)
    most = math.ceil(rate * allowed_BT.shape[1])
    return jnp.where(n_B > 0, jnp.clip(jnp.round(rate * n_B), 1, most), 0)
