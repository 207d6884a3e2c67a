"""Muon: momentum whose every matrix is made orthogonal before it is applied (Jordan et al. 2024).

`optax.contrib.muon` computes the same, but one parameter at a time and in float32 only: here all
matrices of one shape, of all layers, go through Newton-Schulz as one batch.

Shapes: L layers, D model width, N heads, H head width, I input (rows), O output (columns).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict

import jax
import jax.numpy as jnp
import optax

from jaxformer.parallel.rules import path_name

# Biases, gains and other vectors, which have two axes when they are per head.
# Nor are the filters of a line's places (Linformer, Nystromformer) what a stream goes through.
VECTORS = (r".*(bias|scale|norm|conv)", r".*variant/(keys|values|kernel)")
# How many axes of a weight, after the layer axis, are its input; the rest are its output. Listed
# are those that are more than a plain [I, O]. Heads belong together: a projection is one matrix.
INPUT_AXES: tuple[tuple[str, int, int], ...] = (  # pattern, axes, of them input
    (r".*attention/(q|k|v|r)", 3, 1),  # [D, N, H]
    (r".*attention/out", 3, 2),  # [N, H, D]
    (r".*attention/variant/((q|k|v)_global|gate|decay_out)", 3, 1),  # [D, N, H], [R, N, H]
    (r".*attention/(projections/(q|q_up)|variant/(keys|values)_up)", 3, 1),  # [D|Q|R, N, H]
)
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0, ends near [0.7, 1.2]


def is_stacked(name: str) -> bool:
    """Returns whether the first axis of the parameter `name` is the layer."""
    return "layers" in name.split("/")


def input_axes(name: str, shape: tuple[int, ...]) -> int:
    """Returns how many axes after the layer axis are the input of a stacked matrix.

    Args:
      name: the parameter's path.
      shape: its shape, with the layer axis first.

    Returns:
      The number of input axes, or 0 for what is no matrix in a stack of layers.

    Raises:
      ValueError: a stacked weight of more axes that `INPUT_AXES` does not know, which would
        otherwise be handed to Adam in silence.
    """
    ndim = len(shape) - 1
    if not is_stacked(name) or ndim < 2 or any(re.fullmatch(p, name) for p in VECTORS):
        return 0
    for pattern, axes, inputs in INPUT_AXES:
        if axes == ndim and re.fullmatch(pattern, name):
            return inputs
    if ndim == 2:
        return 1
    raise ValueError(
        f"train/muon.py: INPUT_AXES does not say how many axes of {name!r}, shape {shape}, are its "
        "input; add its pattern there"
    )


def as_matrices(name: str, x: jax.Array) -> jax.Array:
    """Returns a stacked weight as [L, I, O]; what is no matrix stays as it is."""
    inputs = input_axes(name, x.shape)
    if not inputs:
        return x
    return x.reshape(x.shape[0], math.prod(x.shape[1 : 1 + inputs]), -1)


def orthogonalise(x_LIO: jax.Array, steps: int, dtype=jnp.float32, eps: float = 1e-7) -> jax.Array:
    """Returns U V^T of each matrix U S V^T, approximately: singular values between 0.7 and 1.2.

    Args:
      x_LIO: a batch of matrices, float32.
      steps: the number of Newton-Schulz iterations; 5 is usual.
      dtype: of the operands of the matmuls, which accumulate in float32.
      eps: added to the Frobenius norm, so that a matrix of zeros stays one.

    Returns:
      float32, shape like `x_LIO`. Jordan et al. 2024, "Muon".
    """
    a, b, c = QUINTIC

    # Iterating on the small Gram matrix alone would spare half of the work on wide matrices, but
    # there an eigenvalue of 0 that is rounded below it (bf16, TF32) grows 12-fold in each step.
    def matmul(x, y):
        return jnp.matmul(x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)

    tall = x_LIO.shape[1] > x_LIO.shape[2]
    x = x_LIO.swapaxes(1, 2) if tall else x_LIO  # the short side first: the Gram matrix is small
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + eps)
    for _ in range(steps):
        gram = matmul(x, x.swapaxes(1, 2))
        x = a * x + matmul(b * gram + c * matmul(gram, gram), x)
    return x.swapaxes(1, 2) if tall else x


def muon(
    momentum: float = 0.95,
    nesterov: bool = True,
    steps: int = 5,
    rms: float = 0.0,
    dtype=jnp.float32,
) -> optax.GradientTransformation:
    """Returns the direction of Muon's update for stacked matrices; rates and decay come after.

    Args:
      momentum: of the running mean of the gradient, kept in float32.
      nesterov: look one step of momentum ahead.
      steps: Newton-Schulz iterations.
      rms: the RMS of the update (Liu et al. 2025, Moonlight: 0.2 is like Adam's); 0 scales by
        sqrt(max(1, O / I)) instead (Jordan et al. 2024).
      dtype: of the operands of Newton-Schulz.
    """

    def update(gradients, state, params=None):
        del params
        mean = jax.tree.map(lambda m, g: m + (1 - momentum) * (g - m), state.trace, gradients)
        ahead = mean
        if nesterov:
            ahead = jax.tree.map(lambda m, g: g + momentum * (m - g), mean, gradients)
        leaves, tree = jax.tree_util.tree_flatten_with_path(ahead)
        matrices = [as_matrices(path_name(path), leaf) for path, leaf in leaves]
        same_shape = defaultdict(list)
        for i, x_LIO in enumerate(matrices):
            same_shape[x_LIO.shape[1:]].append(i)
        updates = [None] * len(leaves)
        for (fan_in, fan_out), members in same_shape.items():
            x = orthogonalise(jnp.concatenate([matrices[i] for i in members]), steps, dtype)
            x *= math.sqrt(rms**2 * max(fan_in, fan_out) if rms else max(1.0, fan_out / fan_in))
            sizes = [matrices[i].shape[0] for i in members]
            starts = [sum(sizes[:j]) for j in range(1, len(sizes))]
            for i, part in zip(members, jnp.split(x, starts), strict=True):
                updates[i] = part.reshape(leaves[i][1].shape)
        return jax.tree.unflatten(tree, updates), optax.TraceState(mean)

    return optax.GradientTransformation(
        lambda params: optax.TraceState(optax.tree.zeros_like(params, dtype=jnp.float32)), update
    )
