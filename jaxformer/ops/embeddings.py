"""Token embeddings.

Shapes: B batch, T time, V vocabulary, D model width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def embed(
    tokens_BT: jax.Array,
    table_VD: jax.Array,
    *,
    scale: float | None = None,
    dtype: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Looks tokens up in a table; an id outside the table gives a row of NaN, never a wrong row.

    Args:
      tokens_BT: integer ids, any leading shape.
      table_VD: the embeddings.
      scale: multiplies the result (the 2017 Transformer and Gemma use sqrt(D)), or None.
      dtype: of the result; the table's if None. The gradient is summed in the table's dtype.

    Returns:
      x_BTD.
    """
    num_rows = table_VD.shape[0]
    # A negative id would count from the end, as in Python: send it beyond the table instead.
    tokens_BT = jnp.where(tokens_BT < 0, num_rows, tokens_BT)
    x_BTD = jnp.take(table_VD, tokens_BT, axis=0, mode="fill", fill_value=jnp.nan)
    if scale is not None:
        x_BTD = x_BTD * jnp.asarray(scale, x_BTD.dtype)
    return x_BTD if dtype is None else x_BTD.astype(dtype)
