"""Tables of weights: which published tensor is which slice of ours, read in both directions.

A transform says how a slice of ours looks in the published layout: which of our axes are merged,
in which order, into each published axis. That is always a view of our memory, so one rule serves
both ways: reading assigns to the view, writing copies from it.

L layers, X experts, N heads, H head width, D model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How a slice of ours lies in the published tensor.

    name: for messages.
    groups: our slice's number of axes -> for each published axis, our axes that it merges.
    values: what is published whatever ours are; see `constant`.
    """

    name: str
    groups: Callable[[int], tuple[Shape, ...]]
    values: tuple[float, ...] | None = None

    def publish(self, ours: np.ndarray) -> np.ndarray:
        """Returns the view of a slice of ours, contiguous, in the published layout."""
        if self.values is not None:
            return np.asarray(self.values).astype(ours.dtype)
        groups = self.groups(ours.ndim)
        merged = tuple(math.prod(ours.shape[axis] for axis in group) for group in groups)
        view = ours.transpose(list(itertools.chain(*groups))).reshape(merged)
        if not np.may_share_memory(view, ours) and ours.size:
            raise ValueError(f"{self.name} of an array with strides {ours.strides} is not a view")
        return view

    def shape(self, ours: Shape) -> Shape:
        """Returns the published shape of a slice of our shape."""
        if self.values is not None:
            return (len(self.values),)
        return tuple(math.prod(ours[a] for a in group) for group in self.groups(len(ours)))

    def windows(self, ours: Shape, where: tuple[slice, ...]) -> list[tuple[tuple, Shape]]:
        """Cuts the part `where` of our slice into pieces that are one window each when published.

        That is the whole part, unless an axis is split that is merged behind another: of gates side
        by side, [G, H] -> [G * H], a device that holds some units holds a window of every gate.

        Returns:
          (the piece of the part, where it begins in the published tensor) for each.
        """
        bounds = [part.indices(size)[:2] for part, size in zip(where, ours, strict=True)]
        groups, apart = self.groups(len(ours)), []
        for group in groups:
            split = [at for at, axis in enumerate(group) if bounds[axis] != (0, ours[axis])]
            apart += group[: max(split, default=0)]
        pieces = []
        for chosen in itertools.product(*(range(*bounds[axis]) for axis in apart)):
            starts = [low for low, _ in bounds]
            piece = [slice(None)] * len(ours)
            for axis, i in zip(apart, chosen, strict=True):
                starts[axis], piece[axis] = i, slice(i - bounds[axis][0], i - bounds[axis][0] + 1)
            begin = []
            for group in groups:
                at = 0
                for axis in group:
                    at = at * ours[axis] + starts[axis]
                begin.append(at)
            pieces.append((tuple(piece), tuple(begin)))
        return pieces


def _range(start: int, stop: int) -> Shape:
    return tuple(range(start, stop))


# Published as it is: vectors, embeddings [V, D], kernels [D, F].
PLAIN = Transform("PLAIN", lambda n: tuple((axis,) for axis in range(n)))
# [N, H] -> [N*H]: biases, those of heads too.
VECTOR = Transform("VECTOR", lambda n: (_range(0, n),))
# [V] -> [1, V]: BART's bias of the logits.
ROW = Transform("ROW", lambda n: ((), *((axis,) for axis in range(n))))
# torch's Linear, [outputs, inputs], of ours [D, F] or [D, N, H]: the first axis is the input.
LINEAR = Transform("LINEAR", lambda n: (_range(1, n), (0,)))
# The same of ours [N, H, D], attention's output projection: all axes but the last are inputs.
LINEAR_FROM_HEADS = Transform("LINEAR_FROM_HEADS", lambda n: ((n - 1,), _range(0, n - 1)))
# [inputs, outputs], as GPT-2's Conv1D: [D, N, H] -> [D, N*H], and [N, H, D] -> [N*H, D].
CONV1D = Transform("CONV1D", lambda n: ((0,), _range(1, n)))
CONV1D_FROM_HEADS = Transform("CONV1D_FROM_HEADS", lambda n: (_range(0, n - 1), (n - 1,)))


def constant(values: Iterable[float]) -> Transform:
    """Says that a tensor holds these numbers in every model: a buffer of the published class.

    Its rule has use="write" and names any parameter, whose type it is written in.
    """
    return Transform("constant", lambda n: (), tuple(values))


class Part(NamedTuple):
    """One of several slices that a published tensor holds side by side; see `part`."""

    transform: Transform
    index: int
    count: int
    axis: int


def part(transform: Transform, index: int, count: int, axis: int = 0) -> Part:
    """Says that a slice is the `index`-th of `count` along the published `axis`.

    `count` rules share one published name; their parts may differ in size (grouped queries).
    """
    return Part(transform, index, count, axis)


class Rule(NamedTuple):
    """One line of a table.

    name: the published name, with {layer} and {expert} where ours have leading axes L and X.
    path: our parameter, "layers/attention/q".
    transform: how a slice of ours lies in the published tensor: one of those above, or `part`.
    use: "both"; "read": a second name that is never written, and where both are there must hold the
      same (a tied head); "copy": a second name that is written too (one parameter that several
      modules share); "write": a copy that is written too, and not read.
    layers: the layers that this rule is for (None: all); the others are set to `fill`, which must
      then be given, or have another rule.
    """

    name: str
    path: str
    transform: Transform | Part = PLAIN
    use: str = "both"
    layers: tuple[int, ...] | None = None
    fill: float | None = None


def linear(
    name: str, path: str, bias: str | None = None, transform: Transform = LINEAR
) -> tuple[Rule, ...]:
    """Returns the rules of a layer's `name`.weight, our `path`, and of its bias, our `bias`."""
    weight = Rule(f"{name}.weight", path, transform)
    return (weight, Rule(f"{name}.bias", bias, VECTOR)) if bias else (weight,)


def norm(name: str, path: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of a norm's `name`.weight and `name`.bias, ours `path`/scale and /bias."""
    scale = Rule(f"{name}.weight", f"{path}/scale")
    return (scale, Rule(f"{name}.bias", f"{path}/bias")) if bias else (scale,)


class Slot(NamedTuple):
    """A slice of ours, `path`[`index`], and the part of a published tensor that it is.

    shape: of our slice; begin, extent: of the part, along every published axis.
    """

    path: str
    index: tuple[int, ...]
    shape: Shape
    transform: Transform
    begin: Shape
    extent: Shape


class Published(NamedTuple):
    """A published tensor: its shape and the slots that make it up; `use` as in Rule.

    Of a "copy" it is "both": either name may be missing where weights are read.
    """

    shape: Shape
    slots: tuple[Slot, ...]
    use: str = "both"


class Table(NamedTuple):
    """A family's rules, written out for parameters of given shapes.

    published: name -> tensor. fills: (path, index) -> value, of slices that are in no file.
    """

    published: dict[str, Published]
    fills: dict[tuple[str, tuple[int, ...]], float]


def expand(rules: Iterable[Rule], shapes: Mapping[str, Shape]) -> Table:
    """Writes the rules out for parameters of these shapes.

    Args:
      rules: a family's table.
      shapes: path -> shape of every parameter.

    Raises:
      ValueError: the table is wrong: a slice has no rule or several, or a rule has no parameter.
    """
    pieces: dict[tuple[str, str], list[tuple[Slot, Part | None]]] = {}
    fills: dict[tuple[str, tuple[int, ...]], float] = {}
    read: dict[tuple[str, tuple[int, ...]], str] = {}
    for rule in rules:
        if rule.path not in shapes:
            raise ValueError(f"the rule of {rule.name!r} names {rule.path!r}, which is not there")
        shape = shapes[rule.path]
        layered, expert = "layers" in rule.path.split("/"), "{expert}" in rule.name
        leading = shape[: layered + expert]
        if layered and "{layer}" not in rule.name and leading[0] != 1:
            raise ValueError(f"{rule.name!r} needs {{layer}}: {rule.path!r} has {leading[0]}")
        transform = rule.transform.transform if isinstance(rule.transform, Part) else rule.transform
        joined = rule.transform if isinstance(rule.transform, Part) else None
        ours = shape[len(leading) :]
        extent = transform.shape(ours)
        for index in itertools.product(*map(range, leading)):
            if rule.layers is not None and index[0] not in rule.layers:
                if rule.fill is not None:
                    fills[rule.path, index] = rule.fill
                continue
            name = rule.name.format(
                layer=index[0] if layered else "", expert=index[-1] if expert else ""
            )
            if rule.use == "both":
                if (rule.path, index) in read:
                    other = read[rule.path, index]
                    raise ValueError(f"{rule.path}{list(index)} is both {other!r} and {name!r}")
                read[rule.path, index] = name
            slot = Slot(rule.path, index, ours, transform, (0,) * len(extent), extent)
            pieces.setdefault((name, rule.use), []).append((slot, joined))
    for path, shape in shapes.items():
        layered = "layers" in path.split("/")
        for layer in range(shape[0]) if layered else [None]:
            found = {p for p, index in (*read, *fills) if p == path and (
                layer is None or index[0] == layer)}  # fmt: skip
            if not found:
                where = "" if layer is None else f"[{layer}]"
                raise ValueError(f"no rule for parameter {path}{where} of shape {shape}")
    published = {}
    for (name, use), slots in pieces.items():
        if name in published:
            raise ValueError(f"the rules of {name!r} differ in their use")
        published[name] = _join(name, "both" if use == "copy" else use, slots)
    return Table(published, fills)


def _join(name: str, use: str, slots: list[tuple[Slot, Part | None]]) -> Published:
    """Makes the published tensor of its parts, laid side by side in their order."""
    (first, joined), *others = slots
    if joined is None:
        if others:
            raise ValueError(f"{name!r} is {first.path} and {others[0][0].path}; use part()")
        return Published(first.extent, (first,), use)
    slots = sorted(slots, key=lambda entry: entry[1].index if entry[1] else 0)
    if [entry[1].index if entry[1] else None for entry in slots] != list(range(joined.count)):
        raise ValueError(f"{name!r} has {len(slots)} of its {joined.count} parts")
    axis, at, placed = joined.axis, 0, []
    for slot, _ in slots:
        begin = list(slot.begin)
        begin[axis] = at
        at += slot.extent[axis]
        placed.append(slot._replace(begin=tuple(begin)))
    shape = list(first.extent)
    shape[axis] = at
    return Published(tuple(shape), tuple(placed), use)
