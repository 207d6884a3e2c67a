"""The checksum: every flipped bit changes it, no placement of the array does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxformer.checkpoint.checksums import _sum, checksums


def _sum_in_numpy(x: np.ndarray) -> str:
    """The same sum by definition, one element after the other, in Python's own integers."""
    words = x.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.itemsize])
    high = low = 0
    for position, word in enumerate(words.tolist(), 1):
        mixed = (word + position * 0x9E3779B1) % 2**32
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        mixed ^= mixed >> 16
        high += mixed
        low += (mixed >> 7) * (position * 0x7FEB352D | 1)
    return f"{high % 2**32:08x}{low % 2**32:08x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_it_is_the_sum_that_its_definition_gives(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)) * 9).astype(dtype)
    assert checksums({"x": x}) == {"x": [dtype, [3, 5, 4], _sum_in_numpy(np.asarray(x))]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_every_single_bit_counts(dtype):
    clean = np.asarray(jnp.asarray(np.random.default_rng(0).normal(size=(2, 3))).astype(dtype))
    sums = [checksums([jnp.asarray(clean)])["0"][2]]
    for bit in range(clean.nbytes * 8):
        flipped = clean.copy()
        flipped.reshape(-1).view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)
        sums.append(checksums([jnp.asarray(flipped)])["0"][2])
    assert len(set(sums)) == len(sums)


def test_swapped_and_zeroed_blocks_count():
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    swapped, zeroed = x[::-1].copy(), x.copy()
    zeroed[3] = 0
    sums = {checksums([jnp.asarray(y)])["0"][2] for y in (x, swapped, zeroed, x.T.copy())}
    assert len(sums) == 4


def test_it_does_not_depend_on_the_sharding_and_gathers_nothing():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (8, 16, 4))
    expected = checksums([x])
    for spec in ((None, "fsdp"), (("data", "fsdp"),)):
        sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        assert checksums([sharded]) == expected
        assert "[8,16,4]" not in _sum.lower(sharded).compile().as_text()


def test_a_leaf_that_no_checkpoint_can_hold_is_named():
    with pytest.raises(TypeError, match="train/key is key<fry>"):
        checksums({"train": {"key": jax.random.key(0)}})
    with pytest.raises(TypeError, match="rate is float"):
        checksums({"rate": 0.1})
    with pytest.raises(ValueError, match="same name"):
        checksums({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})
