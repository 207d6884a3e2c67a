"""What becomes of a model on texts longer than those that it was trained on.

Each length cuts the same validation text into windows of that length, side by side (Press 2022,
section 3): a model that makes use of a longer past gets better with the length, one whose scheme of
positions breaks down gets worse. RoPE can be stretched after training: see SCHEMES.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxformer.errors import UserError
from jaxformer.evaluate import make_eval_step
from jaxformer.parallel import rules
from jaxformer.train.experiment import build
from jaxformer.train.loop import evaluate_split
from jaxformer.train.prepare import prepare

# How RoPE is stretched to a length beyond the trained one; "" leaves it as it is.
SCHEMES = ("", "linear", "ntk", "yarn")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One run under one scheme: the loss in nats per token at each length."""

    name: str
    trained: int
    lengths: tuple[int, ...]
    losses: tuple[float, ...]


def curves(
    name: str,
    chosen: ConfigDict,
    params: Any,
    lengths: Sequence[int],
    *,
    tokens: int,
    say: Callable[[str], None],
) -> list[Curve]:
    """Returns a run's loss at each length, as it is and, with RoPE, under each scheme.

    Args:
      name: the run's, for the curves.
      chosen: the run's config; its data's validation split is read.
      params: its parameters.
      lengths: in tokens.
      tokens: how many of the validation split are read at each length; 0: all.
      say: prints one line for the user.

    Raises:
      UserError: no language model of this family can read other lengths.
    """
    trained = build(chosen).data.seq_len
    learned = chosen.model.positions == "learned" if "positions" in chosen.model else False
    if learned and max(lengths) > chosen.model.max_length:
        raise UserError(
            f"{name} has a table of {chosen.model.max_length} positions, which cannot grow to "
            f"{max(lengths)}; give --lengths up to {chosen.model.max_length}, or train with "
            "--config.model.positions=rope, alibi, t5, sinusoidal or none"
        )
    rope = str(chosen.model.get("positions", "")).startswith("rope")
    # In a window no distance is new, and one that is stretched already stays as it is.
    stretched = chosen.model.get("rope_scaling") or chosen.model.get("window")
    schemes = SCHEMES if rope and not stretched else ("",)
    found = []
    for scheme in schemes:
        # Up to the trained length all schemes are one.
        reached = [n for n in lengths if n > trained] if scheme else list(lengths)
        losses = []
        for length in reached:
            losses.append(_loss(chosen, params, length, trained, scheme, tokens))
            say(f"  {_label(name, scheme):<32} {length:>7,} tokens {losses[-1]:.4f}")
        if reached:
            found.append(Curve(_label(name, scheme), trained, tuple(reached), tuple(losses)))
    return found


def _label(name: str, scheme: str) -> str:
    return f"{Path(name).name}, {scheme}" if scheme else Path(name).name


def _loss(
    chosen: ConfigDict, params: Any, length: int, trained: int, scheme: str, tokens: int
) -> float:
    asked = ConfigDict(chosen.to_dict())
    with asked.unlocked():
        rows = max(1, asked.data.batch_size * trained // length)
        devices = len(jax.devices())  # the batch is split over them
        asked.data.batch_size = -(-rows // devices) * devices
        asked.data.seq_len, asked.data.eval_stride = length, 0
        if asked.model.get("positions") != "learned":  # a table of positions keeps its rows
            asked.model.max_length = max(length, asked.model.max_length)
        if scheme:
            asked.model.rope_scaling = scheme
            asked.model.rope_scaling_factor = length / trained
            asked.model.rope_original_length = trained
    run = prepare(asked, say=lambda line: None)
    if not run.predicts_text:
        raise UserError(
            f"objective.name={run.experiment.goal} has no perplexity over lengths; give runs of "
            "objective.name=causal_lm"
        )
    params = jax.device_put(params, rules.shardings(params, run.mesh))
    with jax.set_mesh(run.mesh):
        step = jax.jit(make_eval_step(run.loss_fn, seed=run.experiment.seed))
        return evaluate_split(run, step, params, tokens)["loss"]
