"""Replaced-token detection: which tokens of a text are a small generator's? (Clark 2020)

The generator is trained to fill in hidden tokens (as masked_lm); what it draws for them replaces
them, and the discriminator tells for every token whether it was replaced. A drawn token that is the
original one was not. No gradient goes through the drawing. The loss is the sum of the generator's
mean over the hidden tokens and `discriminator_weight` times the discriminator's over all tokens.

B batch, T time, P hidden tokens a row, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.errors import UserError
from jaxformer.models import Model, electra, encoder
from jaxformer.objectives import masked_lm
from jaxformer.objectives.likelihood import predict
from jaxformer.objectives.shared import (
    Batch,
    balance,
    balanced,
    checked,
    dropout_key,
    mean,
    real_tokens,
)  # fmt: skip

FAMILIES = ("electra",)
LAYOUTS = ("windows", "packed", "padded")
DRAWN_AT_ONCE = 2**26  # logits in memory while tokens are drawn


@dataclasses.dataclass(frozen=True)
class Config(masked_lm.Config):
    """discriminator_weight: of the discriminator's mean loss. The rest is masked_lm's, with the
    published code's rates: of the hidden tokens 85 % become [MASK] and the rest stay. (The large
    model hides 25 %: rate=0.25.)"""

    mask: float = 0.85
    random: float = 0.0
    discriminator_weight: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        if self.discriminator_weight <= 0:
            raise UserError(
                f"objective.discriminator_weight={self.discriminator_weight} must be above 0; "
                "ELECTRA's is 50"
            )


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {"masked_head": True, "discriminator_head": True}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function; the batch holds tokens [B, T], segment_ids [B, T], rows [B]."""
    masked_lm.require_mask(info, "replaced_token")
    generator = encoder.make(electra.generator_config(model.config))

    def whole(batch: Batch) -> Batch:
        allowed_BT = masked_lm.may_hide(batch, info.mask_id, info.special_ids)
        hidden_B = masked_lm.predictions(allowed_BT, config.rate)
        return balance(batch, hidden_B, real_tokens(batch).sum(axis=1))

    @checked(whole)
    def loss_fn(params, batch, key: jax.Array, train: bool):
        mask_key, draw_key, generator_key, discriminator_key = jax.random.split(key, 4)
        of_generator, of_discriminator = electra.split(params)
        corrupted_BT, where_BP, labels_BP, weights_BP = masked_lm.corrupt(
            batch, mask_key, config,
            mask_id=info.mask_id, special_ids=info.special_ids, vocab_size=info.vocab_size,
        )  # fmt: skip
        drop = dropout_key(generator_key, batch) if train else None
        given = {**batch, "tokens": corrupted_BT}
        hidden_BTD = generator.apply(of_generator, given, key=drop).hidden_BTD
        hidden_BPD = masked_lm.at(hidden_BTD, where_BP)
        filled = predict(
            generator, of_generator, hidden_BPD, labels_BP, weights_BP,
            z_loss=config.z_loss if train else 0.0, chunk=config.chunk,
        )  # fmt: skip

        drawn_BP = draw(generator, of_generator, hidden_BPD, draw_key, batch.get("rows"))
        replaced_BT, is_replaced_BT = replace(batch["tokens"], where_BP, drawn_BP, weights_BP)
        drop = dropout_key(discriminator_key, batch) if train else None
        hidden_BTD = model.apply(params, {**batch, "tokens": replaced_BT}, key=drop).hidden_BTD
        logits_BT = electra.discriminate(of_discriminator, hidden_BTD, model.config.activation)

        real_BT = real_tokens(batch)
        told, hits, caught = detect(logits_BT, is_replaced_BT, real_BT)
        count, replaced = real_BT.sum(), is_replaced_BT.sum().astype(jnp.float32)
        total = balanced(batch, filled[:2], (told, count), config.discriminator_weight)
        return mean(*total), {
            "loss": total,
            "generator_loss": filled[:2],
            "generator_accuracy": (filled[2], filled[1]),
            "discriminator_loss": (told, count),
            "discriminator_accuracy": (hits, count),
            "replaced": (replaced, count),
            "recall": (caught, replaced),
        }

    return loss_fn


def draw(
    model: Model, params: Any, hidden_BPD: jax.Array, key: jax.Array, rows_B: jax.Array | None
) -> jax.Array:
    """Draws a token [B, P] from what the model predicts at each place; it has no gradient.

    Args:
      model: its `logits` turns hidden states to logits.
      params: its parameters.
      hidden_BPD: hidden states.
      key: the step's key; place p of row r draws from it, r and p, so that it does not matter how
        the batch is cut.
      rows_B: each row's number in the global batch; None: counted from 0.
    """
    params, hidden_BPD = jax.lax.stop_gradient((params, hidden_BPD))
    B, P, _ = hidden_BPD.shape
    rows_B = jnp.arange(B) if rows_B is None else rows_B
    keys_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows_B)

    def column(p: jax.Array) -> jax.Array:
        logits_BV = model.logits(params, hidden_BPD[:, p])
        keys = jax.vmap(lambda k: jax.random.fold_in(k, p))(keys_B)
        return jax.vmap(jax.random.categorical)(keys, logits_BV)

    # A few columns at a time: all logits, and as much noise, would not fit.
    width = max(1, DRAWN_AT_ONCE // (B * model.config.vocab_size))
    return jax.lax.map(column, jnp.arange(P), batch_size=min(width, P)).T


def replace(
    tokens_BT: jax.Array, where_BP: jax.Array, drawn_BP: jax.Array, weights_BP: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Puts the drawn tokens in their places, where those are real.

    Returns:
      (tokens_BT, is_replaced_BT: True where the token is no longer the original).
    """
    drawn_BP = drawn_BP.astype(tokens_BT.dtype)
    new_BP = jnp.where(weights_BP > 0, drawn_BP, jnp.take_along_axis(tokens_BT, where_BP, axis=1))
    replaced_BT = jnp.put_along_axis(tokens_BT, where_BP, new_BP, axis=1, inplace=False)
    return replaced_BT, replaced_BT != tokens_BT


def detect(
    logits_BT: jax.Array, is_replaced_BT: jax.Array, weights_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (sum of the binary cross-entropies, hits, replaced tokens that were found)."""
    # log(1 + e^x) - x y, as softplus of the logit with the sign of the wrong answer.
    wrong_BT = jnp.where(is_replaced_BT, -logits_BT, logits_BT)
    losses_BT = jnp.where(weights_BT > 0, jax.nn.softplus(wrong_BT), 0.0)
    said_BT = logits_BT > 0
    hits = jnp.sum((said_BT == is_replaced_BT) * weights_BT)
    return jnp.sum(losses_BT), hits, jnp.sum((said_BT & is_replaced_BT) * weights_BT)
