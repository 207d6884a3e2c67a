"""The device mesh: three named axes, whatever the number of devices."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxformer.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # the batch is split over both: fsdp is data parallelism that shards


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the mesh axes; one of them may be -1: all the devices that are left.

    data: copies of the model, each with its part of the batch.
    fsdp: as data, and parameters and optimizer state are split too (ZeRO, Rajbhandari 2020).
    tensor: heads, feed-forward and vocabulary are split (Megatron, Shoeybi 2019).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.astuple(self)
        for name, size in zip(AXES, sizes, strict=True):
            if size < 1 and size != -1:
                raise UserError(
                    f"mesh.{name} is {size}; give a size of at least 1, or -1 for the rest"
                )
        if sizes.count(-1) > 1:
            raise UserError(f"mesh is {sizes} for {AXES}; only one axis may be -1")


def shape(config: Config, num_devices: int) -> tuple[int, ...]:
    """Returns the sizes of (data, fsdp, tensor), whose product is `num_devices`, or raises."""
    sizes = list(dataclasses.astuple(config))
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % known == 0:
        sizes[sizes.index(-1)] = num_devices // known
    if math.prod(sizes) != num_devices:
        given = ", ".join(
            f"{n}={s}" for n, s in zip(AXES, dataclasses.astuple(config), strict=True)
        )
        raise UserError(
            f"mesh ({given}) multiplies to {known}, but there are {num_devices} devices; "
            f"set one axis to -1, e.g. --config.mesh.data=-1"
        )
    return tuple(sizes)


def make(config: Config, devices: list | None = None) -> Mesh:
    """Returns the mesh over all devices (or those given), with axes (data, fsdp, tensor)."""
    devices = jax.devices() if devices is None else devices
    sizes = shape(config, len(devices))
    auto = (AxisType.Auto,) * len(AXES)
    if len(devices) == len(jax.devices()):
        return jax.make_mesh(sizes, AXES, axis_types=auto)
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=auto)


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of parts into which the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose leading axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of which every device holds a whole copy."""
    return NamedSharding(mesh, PartitionSpec())


def describe(mesh: Mesh) -> str:
    """Returns the mesh in words: "data=8 fsdp=1 tensor=1"."""
    return " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
