"""One row of the ledger: a published model with random weights, and what ours must equal.

B batch, T time, S source time, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import interop
from jaxformer.generate import Config as GenerateConfig
from jaxformer.generate import generate
from jaxformer.models import electra

LOGITS, GRADIENTS = 2e-5, 1e-4  # bounds on max |difference| / max |value|
LENGTHS = (1, 7, 12)  # of a batch's rows: the longest is T
NEW_TOKENS = 10
PER_TOKEN = ("causal", "masked", "replaced")  # kinds whose logits belong to tokens of the batch


@dataclasses.dataclass(frozen=True)
class Case:
    """A published configuration, and how its model is asked.

    family: what the ledger calls it. name: what is special about this configuration.
    make: () -> a transformers model with random weights (every parameter random: zeros and ones
    hide mistakes). kind: "masked" or "causal" (tokens in, logits of each out), "seq2seq", or
    "pooled" (logits of a row). Extra inputs for the published model, beside tokens and mask, come
    from `inputs`; `ours` makes the same of our batch. quirk: what the oracle does otherwise than
    its paper, for the table.
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
    left_padding: bool = True  # whether the oracle can be asked with padding on the left

    @property
    def id(self) -> str:
        return f"{self.family}-{self.name}".replace(" ", "_")


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one case; relative to the oracle's largest value."""

    case: Case
    logits: float  # right-padded batch of several lengths
    left: float | None  # the same rows padded on the left
    alone: float  # ours: each row alone against the row among others
    gradients: float
    back: float  # logits of the exported weights in the published class
    decoded: str  # tokens decoded by cache that equal the oracle's, of all; "" if it cannot

    def complaints(self) -> list[str]:
        """What exceeds its bound."""
        found = [
            f"{name} {value:.1e}"
            for name, value, bound in (
                ("logits", self.logits, LOGITS),
                ("left padding", self.left or 0.0, LOGITS),
                ("alone", self.alone, LOGITS),
                ("gradients", self.gradients, GRADIENTS),
                ("exported", self.back, LOGITS),
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


def batch_of(case: Case, vocab_size: int, *, left: bool = False, seed: int = 0) -> dict[str, Any]:
    """Returns rows of several lengths, as numpy arrays: tokens, mask and, if any, token types."""
    T = max(LENGTHS)
    tokens = np.full((len(LENGTHS), T), case.pad_id)
    mask = np.zeros((len(LENGTHS), T), np.int32)
    types = np.zeros((len(LENGTHS), T), np.int32)
    for row, length in enumerate(LENGTHS):
        where = slice(T - length, T) if left else slice(0, length)
        rng = np.random.default_rng([seed, row])
        tokens[row, where], mask[row, where] = rng.integers(3, vocab_size, length), 1
        types[row, where] = rng.integers(0, max(case.token_types, 1), length)
    return {"tokens": tokens.astype(np.int32), "mask": mask, "types": types}


def ask_theirs(case: Case, model: Any, given: dict[str, Any]) -> Any:
    """Returns the published model's logits, a torch tensor that remembers its gradient."""
    import torch

    mask = torch.tensor(given["mask"])
    asked: dict[str, Any] = {"attention_mask": mask}
    tokens = torch.tensor(given["tokens"]).long()
    if case.token_types:
        asked["token_type_ids"] = torch.tensor(given["types"]).long()
    if case.kind == "seq2seq":
        target = torch.tensor(given["target"]).long()
        return model(input_ids=tokens, decoder_input_ids=target, **asked).logits
    if case.kind == "causal" and "position_ids" in given:
        asked["position_ids"] = torch.tensor(given["position_ids"])
    return model(input_ids=tokens, **asked).logits


def our_batch(case: Case, given: dict[str, Any]) -> dict[str, jax.Array]:
    tokens, mask = jnp.asarray(given["tokens"]), jnp.asarray(given["mask"])
    if case.kind == "seq2seq":
        target = jnp.asarray(given["target"], jnp.int32)
        return {"source": tokens, "source_segment_ids": mask, "tokens": target}
    batch = {"tokens": tokens, "segment_ids": mask}
    if case.token_types:
        batch["token_types"] = jnp.asarray(given["types"])
    return batch


@functools.partial(jax.jit, static_argnums=(0, 1))
def ask_ours(case: Case, model: Any, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns our logits: [B, T, V], or [B, C] of a pooled kind."""
    hidden = model.apply(params, batch).hidden_BTD
    if case.kind == "pooled":
        return model.classify(params, hidden, batch)
    if case.kind == "replaced":
        return electra.discriminate(params, hidden, model.config.activation)
    return model.logits(params, hidden)


def real(case: Case, given: dict[str, Any], logits: Any) -> Any:
    """Returns the logits that mean something: those of real tokens, or of all rows."""
    if case.kind in PER_TOKEN:
        return logits[given["mask"] > 0]
    return logits


def measure(case: Case, folder: Path) -> Row:
    """Runs one case; `folder` is empty."""
    import torch

    theirs = case.make()
    model, params = interop.load_huggingface(save_published(theirs, folder / "published"))
    given = batch_of(case, model.config.vocab_size)
    if case.kind == "seq2seq":
        given["target"] = np.random.default_rng(9).integers(3, model.config.vocab_size, (3, 9))
    expected = ask_theirs(case, theirs, given)
    logits = relative(
        real(case, given, ask_ours(case, model, params, our_batch(case, given))),
        array(real(case, given, expected)),
    )

    left = None
    if case.left_padding:
        shifted = batch_of(case, model.config.vocab_size, left=True)
        if case.kind == "seq2seq":
            shifted["target"] = given["target"]
        ours = ask_ours(case, model, params, our_batch(case, shifted))
        # Our own rows, padded on the other side: what stands beside a row must not matter.
        left = relative(real(case, shifted, ours), array(real(case, given, expected)))

    alone = 0.0
    for row, length in enumerate(LENGTHS[:-1]):
        one = {name: x[row : row + 1] for name, x in given.items()}
        for name in ("tokens", "mask", "types"):
            one[name] = one[name][:, :length]
        ours = ask_ours(case, model, params, our_batch(case, one))
        whole = array(expected)[row : row + 1]
        if case.kind in PER_TOKEN:
            whole = whole[:, :length]
        alone = max(alone, relative(ours, whole))

    gradients = _gradients(case, theirs, model, params, given, expected, folder / "gradients")

    exported = folder / "ours"
    model_type = theirs.config.model_type
    interop.save_huggingface(exported, model, params, model_type=model_type, say=print)
    with quiet():
        again, info = type(theirs).from_pretrained(exported, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], f"{case.id}: {problem}: {info[problem]}"
    with torch.no_grad():
        back = relative(
            array(real(case, given, ask_theirs(case, again.eval(), given))),
            array(real(case, given, expected)),
        )
    decoded = _decode(case, theirs, model, params) if case.decodes else ""
    return Row(case, logits, left, alone, gradients, back, decoded)


def _gradients(case, theirs, model, params, given, expected, folder: Path) -> float:
    """The largest relative difference of a parameter's gradient, under the published names."""
    import torch
    from safetensors.numpy import load_file

    weights = np.random.default_rng(5).normal(size=tuple(expected.shape)).astype(np.float32)
    if case.kind in PER_TOKEN:
        weights = weights * given["mask"].reshape(3, -1, *[1] * (weights.ndim - 2))
    # A random direction, so that no parameter's gradient vanishes by a symmetry of the loss.
    theirs.zero_grad()
    torch.sum(torch.tanh(expected) * torch.tensor(weights)).backward()
    batch = our_batch(case, given)

    def loss(params):
        return jnp.sum(jnp.tanh(ask_ours(case, model, params, batch)) * weights)

    # Written like weights: a table's transforms are linear.
    gradients = jax.jit(jax.grad(loss))(params)
    interop.save_huggingface(folder, model, gradients, model_type=theirs.config.model_type)
    ours = _joined_experts(load_file(folder / "model.safetensors"))
    published = dict(theirs.named_parameters())
    scale = max(float(p.grad.abs().max()) for p in published.values() if p.grad is not None)
    worst = 0.0
    for name, gradient in ours.items():
        if name not in published or published[name].grad is None:
            continue  # a tied weight stands under one of its names
        theirs_grad = array(published[name].grad)
        size = max(np.abs(theirs_grad).max(), 1e-3 * scale)
        worst = max(worst, float(np.abs(np.asarray(gradient) - theirs_grad).max() / size))
    compared = set(ours) & {name for name, p in published.items() if p.grad is not None}
    assert len(compared) >= 0.9 * sum(p.grad is not None for p in published.values()), (
        f"{case.id}: too few gradients compared: {sorted(set(published) - compared)[:5]}"
    )
    return worst


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


def _decode(case: Case, theirs: Any, model: Any, params: Any) -> str:
    """Greedy tokens by cache, prompts of several lengths in one batch."""
    import torch

    given = batch_of(case, model.config.vocab_size, left=case.kind == "causal", seed=3)
    with quiet(), torch.no_grad():
        out = theirs.generate(
            torch.tensor(given["tokens"]).long(), attention_mask=torch.tensor(given["mask"]),
            max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1,
            **({"pad_token_id": case.pad_id} if case.pad_id >= 0 else {}),
        ).numpy()  # fmt: skip
    start = 1 if case.kind == "seq2seq" else given["tokens"].shape[1]
    prompts = [row[m > 0].tolist() for row, m in zip(given["tokens"], given["mask"], strict=True)]
    settings = GenerateConfig(max_new_tokens=NEW_TOKENS, temperature=0.0)
    eos = [case.eos_id] if case.eos_id >= 0 else []
    ours = generate(model, params, prompts, settings, eos_ids=eos)
    same = total = 0
    for row, ids in enumerate(ours):
        expected = out[row, start:].tolist()
        if case.eos_id in expected:
            expected = expected[: expected.index(case.eos_id)]
        total += max(len(expected), len(ids))
        same += sum(a == b for a, b in zip(ids, expected, strict=False))
    return f"{same}/{total}"
