"""Mixture of experts: each token is computed by the few experts that its router likes best.

Nothing is dropped: every token reaches all the experts that it chose. Shapes: R tokens (any leading
axes, flattened), X experts, A experts of one token, D model width, F an expert's hidden width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxformer.ops.ffn import ACTIVATIONS


def route(logits_RX: jax.Array, per_token: int) -> tuple[jax.Array, jax.Array]:
    """Chooses each token's experts and their shares (Jiang et al., 2024, section 2.1).

    Args:
      logits_RX: the router's, float32.
      per_token: A.

    Returns:
      (shares_RA float32, softmax over the chosen logits; experts_RA int32, best first).
    """
    best_RA, experts_RA = jax.lax.top_k(logits_RX.astype(jnp.float32), per_token)
    return jax.nn.softmax(best_RA, axis=-1), experts_RA.astype(jnp.int32)


def experts(
    x: jax.Array,
    router_DX: jax.Array,
    gate_XDF: jax.Array,
    in_XDF: jax.Array,
    out_XFD: jax.Array,
    *,
    per_token: int = 2,
    activation: str = "silu",
) -> jax.Array:
    """The sum of each token's best experts' outputs, weighted by their shares.

    Tokens are sorted by expert and multiplied group by group (`jax.lax.ragged_dot`), so that no
    expert has a capacity and no token is lost. (On CPU that primitive costs as much as all experts
    for all tokens; on accelerators as much as the chosen ones.)

    Args:
      x: [..., D].
      router_DX: the router's weights; its logits are computed in float32.
      gate_XDF: weights before the activation, one matrix an expert.
      in_XDF: weights of what is gated.
      out_XFD: weights back to the model width.
      per_token: A, static.
      activation: a name of ACTIVATIONS.

    Returns:
      [..., D] in the dtype of `x`.

    Raises:
      ValueError: an unknown activation, or more experts a token than there are.
    """
    X = router_DX.shape[1]
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if not 1 <= per_token <= X:
        raise ValueError(f"experts: per_token must be 1 to {X}, not {per_token}")
    x_RD = x.reshape(-1, x.shape[-1])
    R, D = x_RD.shape
    logits_RX = jnp.dot(x_RD, router_DX.astype(x.dtype), preferred_element_type=jnp.float32)
    shares_RA, experts_RA = route(logits_RX, per_token)

    chosen = experts_RA.reshape(-1)
    order = jnp.argsort(chosen, stable=True)  # pairs of token and expert, sorted by expert
    sizes_X = jnp.bincount(chosen, length=X).astype(jnp.int32)
    token = order // per_token

    def multiply(left, right_XIO):
        return jax.lax.ragged_dot(
            left, right_XIO.astype(left.dtype), sizes_X, preferred_element_type=jnp.float32
        ).astype(x.dtype)

    sorted_x = x_RD[token]
    hidden = ACTIVATIONS[activation](multiply(sorted_x, gate_XDF)) * multiply(sorted_x, in_XDF)
    parts = multiply(hidden, out_XFD).astype(jnp.float32) * shares_RA.reshape(-1)[order][:, None]
    total_RD = jnp.zeros((R, D), jnp.float32).at[token].add(parts)
    return total_RD.astype(x.dtype).reshape(x.shape)
