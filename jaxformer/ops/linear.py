"""Matrix products that accumulate in float32, forward and backward.

A plain `jnp.einsum` of bf16 operands leaves two things to chance: the precision of the sum, and the
backward dots, which JAX would build from a float32 cotangent and a bf16 operand (a mixed dot that
runs far slower than either on CPU). Here every dot, in both directions, takes two operands of one
dtype and has `preferred_element_type=float32`. On GPU and TPU that is the native tensor-core dot.

Shapes: D width in, F width out, `..` any leading axes.
"""

from __future__ import annotations

import functools
import string
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def einsum(spec: str, a: Array, b: Array, *, out_dtype: Any = None) -> Array:
    """Einstein sum of two operands with float32 accumulation in all its dots.

    The product is computed in `a`'s dtype: `b` (often a float32 master weight beside a bf16
    activation) is cast to it, and still receives its gradient in its own dtype, unrounded.

    Args:
      spec: as in `jnp.einsum`, with an explicit output, e.g. "btd,dnh->btnh" or "...d,df->...f".
        No index repeats within a term, and each is in at least two of the three terms.
      a: first operand, floating; its dtype is that of the product.
      b: second operand.
      out_dtype: dtype of the result; None: `a`'s. float32 here keeps the unrounded sum.

    Returns:
      The contracted array in `out_dtype`.

    Raises:
      ValueError: the spec is malformed or does not fit the operands.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    if not jnp.issubdtype(a.dtype, jnp.floating) or not jnp.issubdtype(b.dtype, jnp.floating):
        raise ValueError(f"einsum needs floating operands, got {a.dtype} and {b.dtype}")
    terms = _parse(spec, a.ndim, b.ndim)
    out_dtype = jnp.dtype(a.dtype if out_dtype is None else out_dtype)
    if a.dtype == b.dtype and a.dtype.itemsize >= 4:
        # Autodiff already does the right thing, and forward-mode derivatives stay available.
        return _dot(terms, a, b).astype(out_dtype)
    a, b = vary_alike(a, b)
    return _product(terms, out_dtype, a, b)


def linear(x: Array, w: Array, b: Array | None = None, *, axes: int = 1) -> Array:
    """Affine map of the last axes, x·W + b, in x's dtype with float32 accumulation.

    Args:
      x: [..., D], float32 or bf16; with axes=2 [..., N, H], as attention's output.
      w: [D, F], or with more axes on either side: [D, N, H], [N, H, D]; cast to x's dtype.
      b: of W's output axes, or None; added to the float32 sum before it is rounded.
      axes: how many last axes of x, and first axes of W, are summed over.

    Returns:
      [..., F] in x's dtype.

    Raises:
      ValueError: the shapes do not fit.
    """
    if not 0 < axes < w.ndim or x.ndim < axes or x.shape[-axes:] != w.shape[:axes]:
        raise ValueError(f"linear: x {x.shape} does not fit a weight of shape {w.shape} ({axes=})")
    inner, outer = "defgh"[:axes], "nopqr"[: w.ndim - axes]
    spec = f"...{inner},{inner}{outer}->...{outer}"
    if b is None:
        return einsum(spec, x, w)
    y = einsum(spec, x, w, out_dtype=_accumulator(x.dtype))
    return (y + b.astype(y.dtype)).astype(x.dtype)


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _dot(terms: tuple[str, str, str], a: Array, b: Array) -> Array:
    """The einsum of two operands of one dtype, left in its float32 accumulator."""
    spec = f"{terms[0]},{terms[1]}->{terms[2]}"
    return jnp.einsum(spec, a, b, preferred_element_type=_accumulator(a.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(terms: tuple[str, str, str], out_dtype: Any, a: Array, b: Array) -> Array:
    return _dot(terms, a, b.astype(a.dtype)).astype(out_dtype)


def _product_forward(terms, out_dtype, a, b):
    return _product(terms, out_dtype, a, b), (a, b)


def _product_backward(terms, out_dtype, residuals, g):
    del out_dtype
    a, b = residuals
    g = g.astype(a.dtype)
    in_a, in_b, out = terms
    d_a = _dot((out, in_b, in_a), g, b.astype(a.dtype)).astype(a.dtype)
    d_b = _dot((in_a, out, in_b), a, g).astype(b.dtype)
    return d_a, d_b


_product.defvjp(_product_forward, _product_backward)


def vary_alike(*arrays: Array | None) -> list[Array | None]:
    """Inside `shard_map`, marks all operands as varying over the same mesh axes.

    Elsewhere it does nothing. The transpose of the mark is the psum over devices that a replicated
    weight's gradient needs, which a custom gradient would otherwise have to know about.
    """
    axes = [frozenset() if x is None else jax.typeof(x).manual_axis_type.varying for x in arrays]
    union = frozenset().union(*axes)
    return [
        lax.pcast(x, tuple(union - have), to="varying") if x is not None and union - have else x
        for x, have in zip(arrays, axes)
    ]


def _parse(spec: str, ndim_a: int, ndim_b: int) -> tuple[str, str, str]:
    """Splits a spec into its three terms, with the ellipsis spelt out in unused letters."""
    inputs, arrow, out = spec.replace(" ", "").partition("->")
    in_a, comma, in_b = inputs.partition(",")
    if not arrow or not comma or "," in in_b:
        raise ValueError(f"einsum spec {spec!r}: want two operands and an output, 'ab,bc->ac'")
    unused = [c for c in string.ascii_letters if c not in spec]
    widths = [n - len(t) + 3 for t, n in ((in_a, ndim_a), (in_b, ndim_b)) if "..." in t]
    if len(set(widths)) > 1 or any(not 0 <= w <= len(unused) for w in widths):
        raise ValueError(f"einsum spec {spec!r} does not fit operands of {ndim_a}, {ndim_b} axes")
    ellipsis = "".join(unused[: widths[0]]) if widths else ""
    terms = tuple(t.replace("...", ellipsis, 1) for t in (in_a, in_b, out))
    if len(terms[0]) != ndim_a or len(terms[1]) != ndim_b:
        raise ValueError(f"einsum spec {spec!r} does not fit operands of {ndim_a}, {ndim_b} axes")
    for term in terms:
        if len(set(term)) != len(term) or (term and not term.isalpha()):
            raise ValueError(f"einsum spec {spec!r}: {term!r} repeats an index or holds no letter")
    lonely = [c for c in set("".join(terms)) if sum(c in t for t in terms) < 2]
    if lonely:
        raise ValueError(f"einsum spec {spec!r}: index {lonely[0]!r} is in one term only")
    return terms  # type: ignore[return-value]
