"""One row of the ledger: a published model with random weights, and what ours must equal."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop
from jaxformer.errors import UserError
from tests.parity import asking, decoding

LOGITS, GRADIENTS = 2e-5, 1e-4  # bounds on max |difference| / max |value|
LENGTHS = (1, 7, 12)  # of a batch's rows: the longest is T


@dataclasses.dataclass(frozen=True)
class Case:
    """A published configuration, and how its model is asked.

    family: what the ledger calls it. name: what is special about this configuration.
    make: () -> a transformers model with random weights (every parameter random: zeros and ones
    hide mistakes). kind: what is compared, see `asking`: of each token "causal", "masked",
    "replaced", "tagger" or "span"; of a row "pooled"; of both "pretraining"; of a target "seq2seq";
    of a second stream "streams". quirk: what the oracle does otherwise than its paper, for the
    table. decodes: whether it writes text; writes: of what, by its own `generate`, a "batch" of
    prompts padded on the left or "rows" alone; or, where that is wrong, "by hand". following: its
    logits without a cache, see decoding.by_forward; None: they are not compared with those by
    cache, which those of "seq2seq" always are. apart: the oracle is asked row by row, without
    padding, which it does not stand. length_counts: what a row gives depends on the padded length,
    by its definition: it is not asked alone. running: changes of our Config that leave the function
    of the parameters as it is but for a quirk, so that the model can be written. changes: keys of
    our Config other than config.json says, where `make` changed the oracle likewise: no class
    computes such a model, and writing it must fail.
    """

    family: str
    name: str
    make: Callable[[], Any]
    kind: str = "causal"
    quirk: str = ""
    decodes: bool = True
    token_types: int = 0
    pad_id: int = 0
    eos_id: int = -1
    left_padding: bool = True  # whether our rows are asked with padding on the left too
    lengths: tuple[int, ...] = LENGTHS
    apart: bool = False
    length_counts: bool = False
    running: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    writes: str = "batch"
    following: Callable[[Any, list[int], int], Any] | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        return f"{self.family}-{self.name}".replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one case; relative to the oracle's largest value."""

    case: Case
    logits: float  # right-padded batch of several lengths
    left: float | None  # the same rows padded on the left
    alone: float | None  # ours: each row alone against the row among others
    gradients: float
    back: float | None  # logits of the exported weights in the published class, if there is one
    decoded: str  # tokens decoded by cache that equal the oracle's, of all; "" if it cannot
    cached: float | None = None  # logits of a text fed token by token, by cache

    def complaints(self) -> list[str]:
        """What exceeds its bound."""
        found = [
            f"{name} {value:.1e}"
            for name, value, bound in (
                ("logits", self.logits, LOGITS),
                ("left padding", self.left or 0.0, LOGITS),
                ("alone", self.alone or 0.0, LOGITS),
                ("gradients", self.gradients, GRADIENTS),
                ("exported", self.back or 0.0, LOGITS),
                ("by cache", self.cached or 0.0, LOGITS),
            )
            if not value <= bound
        ]
        same, _, total = self.decoded.partition("/")
        return found + ([f"decoded {self.decoded}"] if same != total else [])


def randomise(model: Any, scale: float = 0.1) -> Any:
    """Adds noise to every parameter, norms and biases too, and returns the model for evaluation."""
    import torch

    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:  # Marian's sines are a frozen parameter
            parameter.data += scale * torch.randn_like(parameter)
    return model.eval()


def relative(ours: Any, theirs: Any) -> float:
    """Returns max |ours - theirs| / max |theirs|; NaN counts as infinite."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = np.abs(ours - theirs).max(initial=0.0) / max(
        np.abs(theirs).max(initial=0.0), 1e-30
    )
    return float(np.nan_to_num(difference, nan=np.inf))


def array(tensor: Any) -> np.ndarray:
    return tensor.detach().float().numpy()


@contextlib.contextmanager
def quiet():
    """Silences progress bars and load reports of the published library."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
    logging.disable(logging.NOTSET)


def save_published(model: Any, folder: Path) -> Path:
    """Writes the published model as its own library does."""
    with quiet():
        model.save_pretrained(folder)
    return folder


def measure(case: Case, folder: Path) -> Row:
    """Runs one case; `folder` is empty."""
    theirs = case.make()
    saved = save_published(theirs, folder / "published")
    plain, params = interop.load_huggingface(saved, **case.running)
    model = plain
    if case.changes:
        model, _ = interop.load_huggingface(folder / "published", **case.changes)
    given = asking.question(case, model.config.vocab_size)
    expected = asking.ask_theirs(case, theirs, given)
    known = {name: array(x) for name, x in asking.real(given, expected).items()}

    def difference(given: dict[str, Any]) -> float:
        return worst(asking.real(given, asking.ask_ours(case, model, params, given)), known)

    logits, left, alone = difference(given), None, 0.0
    if case.left_padding:  # what stands beside a row, and where, must not matter
        left = difference(asking.question(case, model.config.vocab_size, left=True))
    for row, length in enumerate(() if case.length_counts else case.lengths[:-1]):
        ours = asking.ask_ours(case, model, params, asking.row_alone(given, row))
        whole = {name: array(x[row : row + 1]) for name, x in expected.items()}
        if "tokens" in whole:
            whole["tokens"] = whole["tokens"][:, :length]
        alone = max(alone, worst(ours, whole))
    gradients = _gradients(case, theirs, model, plain, params, given, expected, folder / "slopes")
    back = _exported(case, theirs, model, params, given, known, folder / "ours")
    decoded, cached = "", None
    if case.decodes:
        with quiet():
            decoded = decoding.greedy(case, theirs, model, params)
        if case.following is not None or case.kind == "seq2seq":
            cached = relative(*decoding.by_cache(case, theirs, model, params))
    alone_if = None if case.length_counts else alone
    return Row(case, logits, left, alone_if, gradients, back, decoded, cached)


def worst(ours: asking.Answer, theirs: asking.Answer) -> float:
    """Returns the largest relative difference of an answer's parts."""
    assert set(ours) == set(theirs)
    return max(relative(ours[name], theirs[name]) for name in theirs)


def _exported(case, theirs, model, params, given, known, folder: Path) -> float | None:
    """Returns how far our weights are in the published class; None if there is no such class."""
    import torch

    if case.changes:
        with pytest.raises(UserError, match="|".join(case.changes)):
            interop.save_huggingface(folder, model, params)
        return None
    model_type = theirs.config.model_type
    interop.save_huggingface(folder, model, params, model_type=model_type, say=print)
    with quiet():
        again, info = type(theirs).from_pretrained(folder, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], f"{case.id}: {problem}: {info[problem]}"
    with torch.no_grad():
        answer = asking.real(given, asking.ask_theirs(case, again.eval(), given))
    return worst({name: array(x) for name, x in answer.items()}, known)


def _gradients(case, theirs, model, plain, params, given, expected, folder: Path) -> float:
    """The largest relative difference of a parameter's gradient, under the published names."""
    import torch
    from safetensors.numpy import load_file

    draw = np.random.default_rng(5).normal
    weights = {name: draw(size=tuple(x.shape)).astype(np.float32) for name, x in expected.items()}
    if "tokens" in weights:
        mask = given["mask"].reshape(*given["mask"].shape, *[1] * (weights["tokens"].ndim - 2))
        weights["tokens"] *= mask
    # A random direction, so that no parameter's gradient vanishes by a symmetry of the loss; and of
    # what is about 1, for a tanh has no slope at the log-probabilities of an adaptive softmax.
    size = {name: float(x.detach().abs().max()) for name, x in expected.items()}
    theirs.zero_grad()
    sum(
        torch.sum(torch.tanh(x / size[name]) * torch.tensor(weights[name]))
        for name, x in expected.items()
    ).backward()

    def loss(params):
        answer = asking.ask_ours(case, model, params, given)
        return sum(jnp.sum(jnp.tanh(x / size[name]) * weights[name]) for name, x in answer.items())

    # Written like weights: a table's transforms are linear.
    gradients = jax.jit(jax.grad(loss))(params)
    interop.save_huggingface(folder, plain, gradients, model_type=theirs.config.model_type)
    ours = _joined_experts(load_file(folder / "model.safetensors"))
    published = dict(theirs.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in published.values() if p.grad is not None)
    largest = 0.0
    for name, gradient in ours.items():
        if name not in published or published[name].grad is None:
            continue  # a tied weight stands under one of its names
        theirs_grad = array(published[name].grad)
        size = max(np.abs(theirs_grad).max(), 1e-3 * scale)
        largest = max(largest, float(np.abs(np.asarray(gradient) - theirs_grad).max() / size))
    compared = set(ours) & {name for name, p in published.items() if p.grad is not None}
    assert len(compared) >= 0.9 * sum(p.grad is not None for p in published.values()), (
        f"{case.id}: too few gradients compared: {sorted(set(published) - compared)[:5]}"
    )
    return largest


def _joined_experts(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns Mixtral's tensors as its class holds them: experts stacked, gate and in joined."""
    found = dict(tensors)
    for name in tensors:
        at, block, rest = name.partition(".block_sparse_moe.")
        if rest == "gate.weight":
            found[f"{at}.mlp.gate.weight"] = found.pop(name)
        elif block and rest == "experts.0.w1.weight":
            several = f"{at}{block}experts.{{}}.{{}}.weight".format
            number = sum(
                key.startswith(at + block) and key.endswith("w1.weight") for key in tensors
            )
            gate, down, up = (
                np.stack([found.pop(several(i, part)) for i in range(number)])
                for part in ("w1", "w2", "w3")
            )
            found[f"{at}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
            found[f"{at}.mlp.experts.down_proj"] = down
    return found
