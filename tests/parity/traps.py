"""Traps: what people get wrong of a system, and the proof that a test would see it.

A trap is a comparison with the published implementation, made twice: as ours is, where it must
agree, and with one mend removed, where it must differ by far. So no such test can pass by chance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop
from jaxformer.models import FAMILIES
from tests.parity.case import LOGITS, array, quiet, randomise, relative, save_published

Params = dict[str, Any]
V = 37
SMALL = dict(
    vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
)
TOKENS = np.random.default_rng(0).integers(3, V, (2, 9)).astype(np.int32)
TARGET = np.random.default_rng(1).integers(3, V, (2, 9)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Trap:
    """One thing that people get wrong.

    system: as in the published world. mistake: what they do. subject: what it is compared with, by
    name. What removes our mend: `config`, keys of our model's config; `params` and `batch`,
    functions of ours that return others; `read`, another reading of the model; `patch`, a function
    of the product and what stands in its place, which is given the true one first.
    """

    system: str
    mistake: str
    subject: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params: Callable[[Params], Params] | None = None
    batch: Callable[[dict], dict] | None = None
    read: Callable[..., jax.Array] | None = None
    patch: tuple[Any, str, Callable[..., Any]] | None = None

    @property
    def id(self) -> str:
        return f"{self.system}-{self.mistake}".replace(" ", "_")


def logits(model: Any, params: Params, batch: dict) -> jax.Array:
    """Returns the logits of each token."""
    return model.logits(params, model.apply(params, batch).hidden_BTD)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A published model's answer, and ours to the same question."""

    expected: np.ndarray
    config: Any
    params: Params
    batch: dict[str, jax.Array]
    read: Callable[..., jax.Array] = logits

    def difference(self, trap: Trap | None = None) -> float:
        """Returns how far ours is, relative to the largest value; with a trap, without its mend."""
        config, params, batch, read, patch = self.config, self.params, self.batch, self.read, None
        if trap is not None:
            config = dataclasses.replace(config, **trap.config)
            params = trap.params(params) if trap.params else params
            batch = trap.batch(batch) if trap.batch else batch
            read, patch = trap.read or read, trap.patch
        model = model_of(dataclasses.replace(config, unroll=1))
        # Step by step: what is compiled of each serves all traps, and every patch is seen.
        with jax.disable_jit(), patched(*patch) if patch else contextlib.nullcontext():
            ours = read(model, params, batch)
        return relative(ours, self.expected)

    @functools.cached_property
    def right(self) -> float:
        """How far ours is as it is."""
        return self.difference()


def model_of(config: Any) -> Any:
    """Returns our model of a config, whatever its family."""
    return next(module for module in FAMILIES.values() if module.Config is type(config)).make(
        config
    )


@contextlib.contextmanager
def patched(owner: Any, name: str, other: Callable[..., Any]) -> Iterator[None]:
    """Puts `other` in the place of a function; it is given the true one as its first argument."""
    true = getattr(owner, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *args, **keys: other(true, *args, **keys))
        yield


def hold(trap: Trap, subject: Subject) -> None:
    """Asserts that ours agrees, and without the mend differs by a hundred times the bound."""
    assert subject.right <= LOGITS
    wrong = subject.difference(trap)
    assert 100 * LOGITS < wrong < np.inf, f"{trap.id}: without its mend it differs by {wrong:.1e}"


def edit(path: str, change: Callable[[Any], Any]) -> Callable[[Params], Params]:
    """Returns a function that returns parameters with the leaf at `path` changed."""
    first, _, rest = path.partition("/")

    def edited(params: Params) -> Params:
        if rest:
            return {**params, first: edit(rest, change)(params.get(first, {}))}
        return {**params, first: change(np.asarray(params[first]) if first in params else None)}

    return edited


def edits(*all_of_them: Callable[[Params], Params]) -> Callable[[Params], Params]:
    """Returns a function that does several edits, one after the other."""

    def edited(params: Params) -> Params:
        for one in all_of_them:
            params = one(params)
        return params

    return edited


def fresh_norm(path: str, width: int) -> Callable[[Params], Params]:
    """Returns an edit that adds a norm as it begins: gain 1, shift 0."""
    return edits(
        edit(f"{path}/scale", lambda _: np.ones(width, np.float32)),
        edit(f"{path}/bias", lambda _: np.zeros(width, np.float32)),
    )


def published(
    cls: str,
    config: str,
    *,
    scale: float = 0.1,
    prepare: Callable[[Any], object] = lambda model: None,
    ask: Callable[..., Any] = lambda model, tokens: model(tokens).logits,
    batch: Mapping[str, Any] | None = None,
    read: Callable[..., jax.Array] = logits,
    **keys: Any,
) -> Subject:
    """Makes a published class with random weights, and ours of what it saves.

    Args:
      cls, config: names of transformers' classes.
      scale: of the noise on every parameter.
      prepare: changes the published model before it is saved.
      ask: (model, tokens as a tensor) -> what ours must equal.
      batch: our batch, beside the tokens.
      read: (our model, params, batch) -> the same of ours.
      **keys: of the published config.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with quiet():
        torch.manual_seed(0)
        made = getattr(transformers, config)(**{"pad_token_id": 0, **keys})
        made._attn_implementation = "eager"
        theirs = randomise(getattr(transformers, cls)(made), scale)
        with torch.no_grad():
            prepare(theirs)
        with tempfile.TemporaryDirectory() as folder:
            saved = save_published(theirs, Path(folder) / "published")
            model, params = interop.load_huggingface(saved)
            params = jax.tree.map(np.array, params)
        with torch.no_grad():
            expected = array(ask(theirs, torch.tensor(TOKENS).long()))
    given = {name: jnp.asarray(x) for name, x in {"tokens": TOKENS, **(batch or {})}.items()}
    return Subject(expected, model.config, params, given, read)


def shrunk(model: Any) -> None:
    """Makes every parameter so small that a norm's epsilon counts; without biases of the logits."""
    for name, parameter in model.named_parameters():
        last = parameter.ndim == 1 and parameter.shape[0] == V
        parameter.data *= 0.0 if last and name.endswith("bias") else 0.02


def in_the_tail(inner: str, outer: str = "") -> Callable[[Any], None]:
    """Returns a change of a model: its activation reads numbers near -3, and what it gives counts.

    There the two forms of GELU differ by a tenth; elsewhere by less than one part in a thousand.

    Args:
      inner: the end of the name of the layer before the activation.
      outer: of the one after it, if that adds to a stream.
    """

    def prepare(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith(f"{inner}.bias"):
                parameter.data -= 2.4
            if outer and name.endswith(f"{outer}.weight") and "attention" not in name:
                parameter.data *= 100.0

    return prepare
