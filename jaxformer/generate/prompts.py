"""Prompts as the compiled programs want them: checked, and padded on the left to few lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError


def check(
    config: Any, prompts: Any, max_new_tokens: int, start: Sequence[int], is_source: bool
) -> list[list[int]]:
    """Returns the prompts as lists of ids, an empty one replaced by `start`.

    `is_source`: they are read by an encoder, so that new tokens do not come after them.

    Raises:
      UserError: an id outside the vocabulary, or more tokens than the model reads.
    """
    checked = []
    source_size = getattr(config, "source_vocab_size", 0) if is_source else 0
    vocab_size = source_size or config.vocab_size
    for row, prompt in enumerate(prompts):
        ids = [int(token) for token in prompt] or list(start)
        if not ids:
            raise UserError(
                f"prompt {row} is empty and the tokenizer has no BOS or EOS token to start from; "
                f"give at least one character"
            )
        outside = [token for token in ids if not 0 <= token < vocab_size]
        if outside:
            raise UserError(
                f"prompt {row} holds token {outside[0]}, but the model's vocabulary has "
                f"{vocab_size}; was it encoded by another tokenizer?"
            )
        if is_source and max(len(ids), 1 + max_new_tokens) > config.max_length:
            raise UserError(
                f"source {row} has {len(ids)} tokens and {max_new_tokens} new ones are asked for; "
                f"this model reads and writes up to model.max_length={config.max_length} each"
            )
        if not is_source and len(ids) + max_new_tokens > config.max_length:
            raise UserError(
                f"prompt {row} has {len(ids)} tokens, and with {max_new_tokens} new ones they "
                f"exceed model.max_length={config.max_length}; "
                + (
                    f"try --config.generate.max_new_tokens={config.max_length - len(ids)}"
                    if len(ids) < config.max_length
                    else f"shorten the prompt to fewer than {config.max_length}"
                )
            )
        checked.append(ids)
    return checked


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def left_pad(prompts: list[list[int]], *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens [B, T] and valid [B, T], T a power of 2 or multiple of 128.

    `exact`: T is the longest prompt's length.
    """
    longest = max(len(prompt) for prompt in prompts)
    length = max(16, 1 << (longest - 1).bit_length()) if longest <= 128 else round_up(longest, 128)
    length = longest if exact else length
    tokens_BT = np.zeros((len(prompts), length), np.int32)
    valid_BT = np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BT[row, length - len(prompt) :] = prompt
        valid_BT[row, length - len(prompt) :] = 1
    return tokens_BT, valid_BT
