"""The table that says how each parameter is split over the mesh, and activations with it."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.parallel.mesh import BATCH_AXES

LINEAR_HEADS = r"classifier|next_sentence|tagger|span|discriminator|discriminator_dense"

# Path pattern (matched whole) -> the mesh axis of each dimension. Leaves under "layers" have a
# leading layer axis, which the table leaves out. Megatron's pairs: the first matmul of a pair is
# split by its outputs, the second by its inputs, so that one all-reduce closes the pair.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(.*/)?embed/tokens", ("tensor", "fsdp")),
    (r"(.*/)?embed/(positions|token_types)", (None, "fsdp")),
    (r"(.*/)?embed/projection", (None, "fsdp")),
    (r"(.*/)?attention/(q|k|v)", ("fsdp", "tensor", None)),
    (r"(.*/)?attention/(q|k|v)_bias", ("tensor", None)),
    (r"(.*/)?attention/out", ("tensor", None, "fsdp")),
    # Of a variant of attention: a global token's projections (Longformer).
    (r"(.*/)?attention/variant/(q|k|v)_global", ("fsdp", "tensor", None)),
    (r"(.*/)?attention/variant/(q|k|v)_global_bias", ("tensor", None)),
    (r"(.*/)?attention/variant/gate", ("fsdp", "tensor", None)),
    (r"(.*/)?attention/variant/decay_in", ("fsdp", None)),
    (r"(.*/)?attention/variant/decay_out", (None, "tensor", None)),
    (r"(.*/)?attention/variant/decay_bias", ("tensor", None)),
    # Latent attention: down to the latents, and up to each head.
    (r"(.*/)?attention/projections/(q|kv)_down", ("fsdp", None)),
    (r"(.*/)?attention/projections/q", ("fsdp", "tensor", None)),
    (r"(.*/)?attention/(projections/q|variant/(keys|values))_up", (None, "tensor", None)),
    # Relative attention: of distances, of the biases of queries, of segments.
    (r"(.*/)?attention/r", ("fsdp", "tensor", None)),
    (r"(.*/)?(attention|relative)/r_[wrs]_bias", ("tensor", None)),
    (r"(.*/)?attention/segment_bias", (None, "tensor", None)),
    (r"memory/gate", ("tensor",)),
    (r"(.*/)?cross_attention/(q|k|v)", ("fsdp", "tensor", None)),
    (r"(.*/)?cross_attention/(q|k|v)_bias", ("tensor", None)),
    (r"(.*/)?cross_attention/out", ("tensor", None, "fsdp")),
    (r"(.*/)?feed_forward/(in|gate)", ("fsdp", "tensor")),
    (r"(.*/)?feed_forward/(in|gate)_bias", ("tensor",)),
    (r"(.*/)?feed_forward/out", ("tensor", "fsdp")),
    (r"(.*/)?experts/router", ("fsdp", None)),
    (r"(.*/)?experts/(in|gate)", (None, "fsdp", "tensor")),
    (r"(.*/)?experts/out", (None, "tensor", "fsdp")),
    (r"(.*/)?head/table", ("tensor", "fsdp")),
    (r"(.*/)?head/bias", ("tensor",)),
    (rf"(.*/)?(masked_head|pooler|{LINEAR_HEADS})/kernel", ("fsdp", None)),
    (r"(.*/)?masked_head/bias", ("tensor",)),
    # Adaptive input and softmax: a table, a projection and a bias for each cluster of words.
    (r"embed/tokens_\d+", ("tensor", "fsdp")),
    (r"embed/projection_\d+", (None, "fsdp")),
    (r"head/table_\d+", ("tensor", "fsdp")),
    (r"head/bias_\d+", ("tensor",)),
    (r"head/projection_\d+", ("fsdp", None)),
    (r"head/cluster", (None, "fsdp")),
    # Recurrent layers: gates have an axis of their own, so a device has all gates of its units.
    (r"(encoder|decoder)/layer_\d+(_\w+)?/(in|hidden|feed)", ("fsdp", None, "tensor")),
    (r"(encoder|decoder)/layer_\d+(_\w+)?/(hidden_)?bias", (None, "tensor")),
    (r"decoder/(attention/(general|query|key)|readout)", ("fsdp", None)),
    # Small vectors and tables: a copy everywhere.
    (r"embed/mask|head/cluster_bias|decoder/attention/score", ()),
    (
        r"(.*/)?(scale|out_bias|kernel_bias|projection_bias|q_norm|k_norm|qk_scale|relative_bias"
        r"|attention_conv|feed_forward_conv|projections/(kv_norm|(q|kv)_down_bias)"
        r"|variant/(keys|values|kernel|sink|lambda_[qk][12]))",
        (),
    ),
    (rf"(.*norm|(.*/)?(pooler|{LINEAR_HEADS}))/bias", ()),
)


def path_name(path: tuple) -> str:
    """Returns the "a/b/c" name of a pytree path of nested dicts."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules=RULES) -> PartitionSpec:
    """Returns how the parameter `name` of `shape` is split over `mesh`.

    A dimension that its mesh axis does not divide stays whole (65 characters over tensor=2).

    Raises:
      ValueError: no rule, or rules that disagree, for this name: the table must be mended.
    """
    of_layer = name.replace("layers/", "", 1)
    found = {axes for pattern, axes in rules if re.fullmatch(pattern, of_layer)}
    if len(found) != 1:
        what = "no rule" if not found else f"rules that collide ({sorted(map(str, found))})"
        raise ValueError(f"parallel/rules.py has {what} for parameter {name!r} of shape {shape}")
    axes = found.pop()
    if not axes:
        return PartitionSpec()
    stacked = (None,) * ("layers" in name.split("/"))
    if len(stacked) + len(axes) != len(shape):
        raise ValueError(f"the rule of {name!r} names {len(axes)} axes, but its shape is {shape}")
    return PartitionSpec(
        *(
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip((*stacked, *axes), shape, strict=True)
        )
    )


def shardings(params: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of every parameter, as a tree like `params` (arrays or shapes)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path_name(path), leaf.shape, mesh)), params
    )


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a whole train state.

    Optimizer state is split like the parameter it belongs to: a leaf whose path ends in a
    parameter's path and that has its shape follows it; anything else is replicated.
    """
    by_name = {
        path_name(path): (leaf.shape, spec(path_name(path), leaf.shape, mesh))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def one(path, leaf):
        parts = path_name(path).split("/")
        for start in range(len(parts)):
            shape, found = by_name.get("/".join(parts[start:]), (None, None))
            if shape == leaf.shape:
                return NamedSharding(mesh, found)
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, state)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps the leading axis of `x` split over the batch axes of the mesh in use, if there is one.

    Without it, XLA may follow the parameters' fsdp split into the activations, which gathers the
    batch. Outside `jax.set_mesh(...)` it changes nothing, so models run bare in a notebook.
    """
    mesh = _mesh_in_use()
    if mesh is None or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    rest = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *rest))


def gather_width(table_VD: jax.Array) -> jax.Array:
    """Undoes the fsdp split of a table's width, before rows are looked up in it.

    Otherwise the rows come out split by width over the devices that should split the batch, and
    XLA can only replicate them all to get from the one to the other.
    """
    if _mesh_in_use() is None:
        return table_VD
    return jax.lax.with_sharding_constraint(
        table_VD, PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
    )


def _mesh_in_use() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or not set(BATCH_AXES) <= set(mesh.axis_names) else mesh
