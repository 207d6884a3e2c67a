"""Two sentences in a row: masked tokens are predicted, and how the sentences belong together.

The data choose the second task. data.pair_task="next" is BERT's next-sentence prediction (Devlin
2019, 3.1): does the second follow the first, or is it from elsewhere? "order" is ALBERT's
sentence-order prediction (Lan 2020, 3.1): do two neighbours stand in their order, or swapped? The
loss is the sum of both means.

B batch, T time, D model width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import ops
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.objectives import masked_lm
from jaxformer.objectives.shared import Batch, balance, balanced, checked, mean, real_rows

FAMILIES = ("encoder",)
LAYOUTS = ("sentence_pairs",)
PAIRS = ("next_sentence", "order")  # of which the batch holds one

Config = masked_lm.Config


def adapt(config: Config, info: Any) -> dict[str, Any]:
    """Returns the keys of the model's config that this objective decides."""
    return {"masked_head": True, "next_sentence_head": True}


def make(config: Config, model: Model, info: Any):
    """Returns the loss function.

    The batch holds tokens, segment_ids and (but for tokenizers that have none) token_types [B, T],
    rows [B], and next_sentence [B] (0 follows, 1 is another) or order [B] (0 right, 1 swapped).

    Raises:
      UserError: a tokenizer without a mask token; when called, token types without a table.
    """
    masked_lm.require_mask(info, "bert_pretraining")

    def whole(batch: Batch) -> Batch:
        hidden_BT = masked_lm.may_hide(batch, info.mask_id, info.special_ids)
        return balance(batch, masked_lm.predictions(hidden_BT, config.rate), real_rows(batch))

    @checked(whole, segment_ids="BT")
    def loss_fn(params, batch, key: jax.Array, train: bool):
        if "token_types" in batch and model.config.num_token_types < 2:
            raise UserError(
                f"model.num_token_types={model.config.num_token_types} cannot tell two sentences "
                "apart; set --config.model.num_token_types=2"
            )
        [label] = [name for name in PAIRS if name in batch]
        hidden_BTD, masked = masked_lm.fill_in(config, model, info, params, batch, key, train)
        assert model.pool is not None
        pooled_BD = model.pool(params, hidden_BTD, batch)
        logits_B2 = model.readout(params, pooled_BD, "next_sentence")
        weights_B = real_rows(batch)
        pair = ops.cross_entropy(logits_B2, batch[label], weights=weights_B)
        hits = jnp.sum((jnp.argmax(logits_B2, axis=-1) == batch[label]) * weights_B)
        total, count = balanced(batch, masked[:2], pair)
        return mean(total, count), {
            "loss": (total, count),
            "masked_loss": masked[:2],
            "masked_accuracy": (masked[2], masked[1]),
            "pair_loss": pair,
            "pair_accuracy": (hits, pair[1]),
        }

    return loss_fn
