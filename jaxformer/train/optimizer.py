"""The optimizer: which parameter is updated by what, at which learning rate, with which decay.

Parameters are a nested dict; their names are paths, "embed/tokens" or "layers/attention/q". A leaf
with "layers" in its path is a stack: its first axis is the layer. Shapes: L layers, D model width,
N heads, H head width, F feed-forward width.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer.errors import UserError, one_of, suggest
from jaxformer.parallel.rules import path_name
from jaxformer.train.muon import VECTORS, as_matrices, input_axes, is_stacked, muon

OPTIMIZERS = ("adamw", "lion", "adafactor", "muon", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "wsd", "inverse_sqrt")


@dataclasses.dataclass(frozen=True)
class Config:
    """How parameters are updated. Patterns are regular expressions that match a whole path;
    in a stack, `layers/3/attention/q` names one layer and `layers/attention/q` all of them."""

    name: str = "adamw"
    learning_rate: float = 1e-3  # the peak; for adafactor relative to the parameter's RMS
    adam_learning_rate: float = 0.0  # muon: of what is not a matrix in a layer; 0 = learning_rate
    b1: float = 0.9  # adamw, lion, and muon's Adam group
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95  # muon and sgd
    nesterov: bool = True
    newton_schulz_steps: int = 5
    newton_schulz_dtype: str = "float32"  # bfloat16 is faster, and differs between meshes
    muon_rms: float = 0.0  # the RMS of muon's update (0.2 is like Adam's); 0 = sqrt(max(1, out/in))
    weight_decay: float = 0.1  # decoupled, times the learning rate
    no_decay: tuple[str, ...] = VECTORS  # add r"embed/.*" to spare the embeddings
    clip_norm: float = 1.0  # of the gradient of all that is trained; 0 = off
    schedule: str = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.2  # wsd: the last part of the run, in which the rate falls
    final_fraction: float = 0.1  # the rate at the end / the peak
    rates: tuple[str, ...] = ()  # "PATTERN:FACTOR": those parameters' rate / what it would be
    layer_decay: float = 1.0  # each layer's rate / that of the layer above it; 1 = off
    frozen: tuple[str, ...] = ()
    ema_decay: float = 0.0  # 0 = no average of the parameters is kept

    def __post_init__(self):
        one_of(self.name, OPTIMIZERS, "optimizer.name")
        one_of(self.schedule, SCHEDULES, "optimizer.schedule")
        one_of(self.newton_schulz_dtype, ("float32", "bfloat16"), "optimizer.newton_schulz_dtype")
        for name in ("b1", "b2", "momentum", "ema_decay"):
            _require(self, name, lambda x: 0 <= x < 1, "at least 0 and less than 1")
        for name in ("decay_fraction", "final_fraction"):
            _require(self, name, lambda x: 0 <= x <= 1, "between 0 and 1")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "adam_learning_rate", "muon_rms"):
            _require(self, name, lambda x: 0 <= x < math.inf, "0 or more")
        for name in ("learning_rate", "eps", "newton_schulz_steps"):
            _require(self, name, lambda x: 0 < x < math.inf, "more than 0")
        _require(self, "layer_decay", lambda x: 0 < x <= 1, "more than 0 and at most 1")
        for rate in self.rates:
            if not re.fullmatch(r".+:\d*\.?\d+(e-?\d+)?", rate):
                raise UserError(
                    f"optimizer.rates: {rate!r} is not PATTERN:FACTOR, such as 'head/.*:0.5'"
                )
        patterns = {name: getattr(self, name) for name in ("no_decay", "frozen")}
        patterns["rates"] = tuple(rate.rpartition(":")[0] for rate in self.rates)
        for name, given in patterns.items():
            for pattern in given:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UserError(
                        f"optimizer.{name}: {pattern!r} is not a regular expression: {error}"
                    ) from None


def _require(config: Config, name: str, valid: Callable[[float], bool], words: str) -> None:
    if not valid(getattr(config, name)):
        raise UserError(f"optimizer.{name} must be {words}, but is {getattr(config, name)!r}")


def make_schedule(config: Config, total_steps: int) -> Callable[[Any], Any]:
    """Returns the learning rate as a function of the step, counted from 0.

    The warm-up rises linearly to the peak at step `warmup_steps`; no step has rate 0. The decay
    would reach `final_fraction` of the peak at step `total_steps`, one after the last. A run that
    is shorter than its warm-up just never reaches the peak.

    Args:
      config: the optimizer's config.
      total_steps: the number of updates of the whole run.

    Returns:
      A function from the step (int or int32 array) to the rate. Inverse square
      root: Vaswani et al. 2017, eq. 3; WSD: Hu et al. 2024 (MiniCPM), with a linear decay.
    """
    warmup, final = config.warmup_steps, config.final_fraction
    decay = (
        config.decay_fraction * total_steps if config.schedule == "wsd" else total_steps - warmup
    )

    def schedule(step: Any) -> Any:
        xp = jnp if isinstance(step, jax.Array) else np  # a rate to be printed needs no device
        step = xp.asarray(step, xp.float32)
        # 0 at the peak, 1 at the end.
        progress = xp.clip((step - (total_steps - decay)) / max(decay, 1.0), 0.0, 1.0)
        if config.schedule == "constant":
            factor = 1.0
        elif config.schedule == "cosine":
            factor = final + (1 - final) * 0.5 * (1 + xp.cos(xp.pi * progress))
        elif config.schedule == "inverse_sqrt":
            factor = xp.sqrt((warmup + 1) / xp.maximum(step + 1, warmup + 1))
        else:
            factor = 1 - (1 - final) * progress
        return config.learning_rate * xp.minimum((step + 1) / (warmup + 1), 1.0) * factor

    return schedule


class Rule(NamedTuple):
    """What happens to one parameter."""

    group: str  # "muon", "adam", another optimizer's name, or "frozen"
    rate: tuple[float, ...]  # times the schedule: one number, or one per layer (0 = frozen)
    weight_decay: float


def make_rules(config: Config, params: Any) -> dict[str, Rule]:
    """Returns the rule of every parameter by name.

    Args:
      config: the optimizer's config.
      params: nested dict of arrays or of anything with a shape.

    Raises:
      UserError: a pattern in `frozen` that matches no parameter.
    """
    shapes = {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    known = {n for name, shape in shapes.items() for n in (name, *_layer_names(name, shape))}
    patterns = [("frozen", pattern) for pattern in config.frozen]
    patterns += [("rates", rate.rpartition(":")[0]) for rate in config.rates]
    for key, pattern in patterns:
        if not any(re.fullmatch(pattern, name) for name in known):
            raise UserError(
                f"optimizer.{key}: {pattern!r} matches no parameter{suggest(pattern, known)}; "
                f"parameters: {', '.join(sorted(shapes))}"
            )
    depth = max((shape[0] for name, shape in shapes.items() if is_stacked(name)), default=0)
    return {name: _rule(config, name, shape, depth) for name, shape in shapes.items()}


def _rule(config: Config, name: str, shape: tuple[int, ...], depth: int) -> Rule:
    group = "adam" if config.name in ("adamw", "muon") else config.name
    base = 1.0
    if config.name == "muon":
        if input_axes(name, shape):
            group = "muon"
        elif config.adam_learning_rate:
            base = config.adam_learning_rate / config.learning_rate
    elif config.name == "adafactor" and is_stacked(name):
        group = "adafactor per layer"
    for pattern, _, factor in (rate.rpartition(":") for rate in config.rates):
        if re.fullmatch(pattern, name):
            base *= float(factor)
    decay = 0.0 if _matches(config.no_decay, name) else config.weight_decay
    if is_stacked(name):
        rate = tuple(
            0.0 if _matches(config.frozen, one) else base * config.layer_decay ** (shape[0] - i)
            for i, one in enumerate(_layer_names(name, shape))
        )
        rate = rate[:1] if len(set(rate)) == 1 else rate
    else:
        # Embeddings lie below the first layer; heads and the last norm above the last.
        below = depth + 1 if re.match(r"(.*/)?(embed|relative)/", name) else 0
        rate = (base * config.layer_decay**below,)
    if _matches(config.frozen, name) or not any(rate):
        return Rule("frozen", (0.0,), 0.0)
    return Rule(group, rate, decay)


def make_optimizer(config: Config, total_steps: int, params: Any) -> optax.GradientTransformation:
    """Returns the optax transformation that turns gradients into updates.

    Its state holds float32 moments shaped and named like the parameters, none for frozen ones.
    A frozen parameter's update is -0.0, which changes no bit of it, and its gradient counts
    neither in the clipping norm nor anywhere else.

    Args:
      config: the optimizer's config.
      total_steps: the number of updates of the whole run.
      params: nested dict of arrays or shapes; only names and shapes are read.

    Returns:
      `init(params)` and `update(gradients, state, params)`; add the update to the parameters.

    Raises:
      UserError: a pattern in `frozen` that matches no parameter.
    """
    table = make_rules(config, params)
    # Sorted, for the program must be the same in every process, or no compilation cache finds it.
    groups = sorted({rule.group for rule in table.values()})
    cores = {group: _core(config, group) for group in groups}
    return optax.chain(
        _drop_frozen(table),
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.partition(cores, _by_name(lambda name, _: table[name].group, params)),
        _apply_rates(table, make_schedule(config, total_steps)),
    )


def _core(config: Config, group: str) -> optax.GradientTransformation:
    """The direction of a group's update; rates and weight decay come after."""
    if group == "adam":
        return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=jnp.float32)
    if group == "lion":  # Chen et al. 2023
        return optax.scale_by_lion(config.b1, config.b2, mu_dtype=jnp.float32)
    if group == "sgd":
        return optax.trace(config.momentum, config.nesterov, accumulator_dtype=jnp.float32)
    if group == "muon":
        return muon(
            config.momentum,
            config.nesterov,
            config.newton_schulz_steps,
            config.muon_rms,
            jnp.dtype(config.newton_schulz_dtype),
        )
    if group == "adafactor":  # Shazeer and Stern 2018, without momentum
        return optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
    if group == "adafactor per layer":
        return _per_layer(_core(config, "adafactor"))
    return optax.set_to_zero()  # frozen: keeps no state


def _per_layer(one: optax.GradientTransformation) -> optax.GradientTransformation:
    """Treats each matrix of a stack for itself, where factors and RMSs are taken of a matrix."""

    def init(params):
        return jax.vmap(one.init)(_by_name(as_matrices, params))

    def update(updates, state, params):
        matrices = [_by_name(as_matrices, tree) for tree in (updates, params)]
        new, state = jax.vmap(one.update)(matrices[0], state, matrices[1])
        return jax.tree.map(lambda x, like: x.reshape(like.shape), new, updates), state

    return optax.GradientTransformation(init, update)


def _drop_frozen(table: dict[str, Rule]) -> optax.GradientTransformation:
    """Zeros the gradients of frozen parameters and layers, so that nothing depends on them."""

    def update(updates, state, params=None):
        del params
        return _by_name(lambda n, g: _where_trained(table[n], g, jnp.zeros_like(g)), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _apply_rates(table: dict[str, Rule], schedule) -> optax.GradientTransformation:
    """Adds decoupled weight decay and multiplies by each parameter's learning rate."""

    def update(updates, state, params):
        rate = schedule(state.count)

        def one(name, update, param):
            rule = table[name]
            if rule.weight_decay:
                update = update + rule.weight_decay * param
            factor = rule.rate[0] if len(rule.rate) == 1 else _rate_per_layer(rule.rate, update)
            return _where_trained(rule, -(rate * factor) * update, jnp.full_like(update, -0.0))

        updates = _by_name(one, updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update
    )


def _where_trained(rule: Rule, trained: jax.Array, frozen: jax.Array) -> jax.Array:
    if all(rule.rate):
        return trained
    if not any(rule.rate):
        return frozen
    return jnp.where(_rate_per_layer(rule.rate, trained) > 0, trained, frozen)


def _rate_per_layer(rate: tuple[float, ...], like: jax.Array) -> jax.Array:
    return jnp.asarray(rate, jnp.float32).reshape(-1, *(1,) * (like.ndim - 1))


def update_ema(ema: Any, params: Any, decay: float) -> Any:
    """Returns the exponential moving average one step on; equal values stay equal to the bit."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def describe(config: Config, params: Any) -> dict[str, str]:
    """Returns the words for each parameter's row in the parameter table, by name."""
    words = {}
    for name, rule in make_rules(config, params).items():
        parts = [rule.group]
        if len(rule.rate) > 1:
            parts.append(f"rate x{rule.rate[0]:.3g}..{rule.rate[-1]:.3g}")
        elif rule.rate[0] not in (0.0, 1.0):
            parts.append(f"rate x{rule.rate[0]:.3g}")
        if rule.weight_decay:
            parts.append(f"decay {rule.weight_decay:g}")
        words[name] = ", ".join(parts)
    return words


def _by_name(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _layer_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The names of a stack's single layers: layers/0/attention/q, layers/1/attention/q, ..."""
    if not is_stacked(name):
        return [name]
    return [re.sub(r"(^|/)layers(?=/)", rf"\1layers/{i}", name, count=1) for i in range(shape[0])]
