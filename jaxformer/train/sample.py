"""A trained model without its data: what it writes, and where it looks.

L layers, N heads, T tokens of a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import data, generate, models
from jaxformer.errors import UserError
from jaxformer.models import Model, family_of
from jaxformer.modules.attention import Maps
from jaxformer.train.load import Loaded
from jaxformer.train.prepare import Prepared


class Speaker(NamedTuple):
    """A model, its tokenizer, and how to draw from it; see Loaded."""

    model: Model
    tokenizer: data.Tokenizer
    config: generate.Config
    data: data.Config
    prefix: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    first: int = -1

    @classmethod
    def of(cls, loaded: Loaded) -> Speaker:
        """Makes the speaker of a run or of a published folder."""
        return cls(
            _writer(loaded.model.config), loaded.tokenizer, loaded.generate, loaded.data,
            loaded.prefix, loaded.suppress, loaded.first,
        )  # fmt: skip

    def write(
        self,
        params: Any,
        prompts: Sequence[str],
        stream: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """Returns the continuation of each prompt, or what each source becomes.

        Raises:
          UserError: the model cannot write, or a prompt cannot be encoded or is too long.
        """
        ids = [self._read(prompt) for prompt in prompts]
        end_ids = [self.tokenizer.eos_id] if self.tokenizer.eos_id >= 0 else []
        start_id = -1
        if self.model.encode is not None:
            ends = data.ends_of(self.tokenizer, self.data.start_id)
            start_id, end_ids = ends.start, [ends.target_suffix[-1]]
        tokens = generate.generate(
            self.model,
            params,
            ids,
            self.config,
            stream=stream,
            decode=self.tokenizer.decode,
            eos_ids=end_ids,
            bos_id=self.tokenizer.bos_id,
            start_id=start_id,
            num_ids=self.tokenizer.vocab_size,
            suppress_ids=self.suppress,
            first_id=self.first,
        )
        return [self.tokenizer.decode(row) for row in tokens]

    def fits(self, prompt: str) -> bool:
        """Returns whether the model can read a prompt and then write as much as is asked for."""
        written = 0 if self.model.encode is not None else self.config.max_new_tokens
        return len(self._read(prompt)) + written <= self.model.config.max_length

    def _read(self, prompt: str) -> list[int]:
        """Returns the ids that the model reads of a prompt, or of a source."""
        text = self.tokenizer.encode(prompt)
        if self.model.encode is None:
            return [*self.prefix, *text]
        ends = data.ends_of(self.tokenizer, self.data.start_id)
        before = self.tokenizer.encode(self.data.source_prefix)
        return [*ends.source_prefix, *before, *text, *ends.source_suffix]

    def attention(
        self, params: Any, text: str, maps: Maps | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """Returns (weights_LNTS, the tokens as strings) of a text.

        Args:
          params: the model's.
          text: read whole.
          maps: the layers, heads and queries that are wanted; None: all.

        Raises:
          UserError: a text without tokens, or longer than the model reads; a layer, head or query
            that is not there.
        """
        ids = self.tokenizer.encode(text, specials=self.tokenizer.cls_id >= 0)
        most, V = self.model.config.max_length, self.model.config.vocab_size
        if not 0 < len(ids) <= most:
            raise UserError(f"--text has {len(ids)} tokens; this model reads 1 to {most}")
        if max(ids) >= V:
            raise UserError(f"--text holds token {max(ids)}, but this model's vocabulary has {V}")
        batch = {"tokens": jnp.asarray([ids], jnp.int32)}
        if maps is not None:
            _refuse_missing(self.model.config, maps, len(ids))
        out = jax.jit(self.model.apply, static_argnames="return_attention")(
            params, batch, return_attention=True if maps is None else maps
        )
        return np.asarray(out.attention_LBNTS[:, 0]), [
            self.tokenizer.decode([i], specials=True) for i in ids
        ]


def _refuse_missing(config: Any, maps: Maps, length: int) -> None:
    if family_of(config) not in ("decoder", "encoder"):
        raise UserError(
            f"model.family={family_of(config)} gives all its attention maps at once; leave "
            "--layers, --heads and --rows out"
        )
    for flag, asked, size in (
        ("layers", maps.layers, config.num_layers), ("heads", maps.heads, config.num_heads),
        ("rows", maps.rows, length),
    ):  # fmt: skip
        for place in asked:
            if place >= size:
                raise UserError(f"--{flag}: there is no {place}; valid: 0 to {size - 1}")


def sample(run: Prepared, params: Any) -> list[tuple[str, str]]:
    """Returns (prompt, continuation) for each prompt of the config; for the log."""
    model = _writer(run.model.config)
    speaker = Speaker(model, run.dataset.tokenizer, run.experiment.generate, run.experiment.data)
    prompts = speaker.config.prompts
    return list(zip(prompts, speaker.write(params, prompts), strict=True))


def _writer(config: Any) -> Model:
    """Returns the model; on CPU in float32, for XLA's bf16 matrix times vector is far slower."""
    if jax.default_backend() == "cpu":
        config = dataclasses.replace(config, compute_dtype="float32")
    return models.make(config)
