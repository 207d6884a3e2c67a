"""Every variant times everything that one may want of it: a test for each cell of the matrix."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.ops import masks
from tests.conformance.case import CELLS, case_for
from tests.conformance.evaluate import (
    attend,
    gradients,
    probe_of,
    true_gradients,
    true_values,
    values,
    with_gradients,
)
from tests.conformance.matrix import README, VARIANTS, table

DEVICES = 8


def cells(which, possible=True):
    """The pairs (variant, cell); those that are not in the fast set are slow."""
    return [
        pytest.param(
            variant, cell, id=f"{variant}: {cell}", marks=() if CELLS[cell][1] else pytest.mark.slow
        )
        for variant in VARIANTS
        for cell in which
        if (cell not in variant.cannot) == possible
    ]


def setup(variant, cell):
    case = case_for(cell, variant.causal, variant.keys)
    arrays, own = variant.draw(case)
    return case, arrays, own


def equal(a, b, tolerance):
    """Compares trees; the tolerance is of numbers up to 1, and of the largest beyond it."""
    a_leaves, structure = jax.tree.flatten(a)
    b_leaves, same = jax.tree.flatten(b)
    assert structure == same
    for x, y in zip(a_leaves, b_leaves, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1.0, abs(y).max(initial=0)))


def run(variant, case, arrays, own):
    """Returns the output; of padding by the program that the gradients need anyway."""
    if case.lengths_B is not None and case.T == 20 and case.B == 2:
        return with_gradients(variant)(arrays, own, case.mask(), probe_of(case))[0]
    return values(variant)(arrays, own, case.mask(), offset=case.offset)


VALUES = ("padding", "packing", "causal", "bidirectional", "GQA", "cross", "T ≠ S")


@pytest.mark.parametrize(("variant", "cell"), cells(VALUES))
def test_it_equals_its_reference_in_float64(variant, cell):
    case, arrays, own = setup(variant, cell)
    out = run(variant, case, arrays, own)
    assert out.shape == arrays[0].shape and out.dtype == jnp.float32
    equal(out, true_values(variant, arrays, own, case), variant.tolerance)


@pytest.mark.parametrize(("variant", "cell"), cells(["gradients"]))
def test_its_gradients_are_those_of_its_reference_in_float64(variant, cell):
    case, arrays, own = setup(variant, cell)
    _, found = with_gradients(variant)(arrays, own, case.mask(), probe_of(case))
    want = true_gradients(variant, arrays, own, case)
    assert max(abs(x).max() for x in jax.tree.leaves(want)) > 0.1
    equal(found, want, 3 * variant.tolerance)


@pytest.mark.parametrize(("variant", "cell"), cells(["empty row"]))
def test_a_row_that_sees_nothing_is_zero(variant, cell):
    case, arrays, own = setup(variant, cell)  # all keys of the second row of the batch are hidden
    out, (of_arrays, of_own) = with_gradients(variant)(arrays, own, case.mask(), probe_of(case))
    assert np.all(np.asarray(out[1]) == 0.0) and np.any(np.asarray(out[0]) != 0.0)
    for x in jax.tree.leaves((of_arrays, of_own)):
        assert np.all(np.isfinite(x))
    for x in of_arrays:
        assert np.all(np.asarray(x[1]) == 0.0)


@pytest.mark.parametrize(("variant", "cell"), cells(["bf16"]))
def test_bf16_comes_near(variant, cell):
    case, arrays, own = setup(variant, cell)
    arrays = [x.astype(jnp.bfloat16) for x in arrays]
    out, found = with_gradients(variant)(arrays, own, case.mask(), probe_of(case))
    assert out.dtype == jnp.bfloat16 and all(x.dtype == jnp.bfloat16 for x in found[0])
    want = true_values(variant, arrays, own, case), true_gradients(variant, arrays, own, case)
    for x, y in zip(jax.tree.leaves((out, found)), jax.tree.leaves(want), strict=True):
        x = np.asarray(x, np.float64)
        assert np.linalg.norm(x - y) <= variant.bf16 * np.linalg.norm(y)


@pytest.mark.parametrize(("variant", "cell"), cells(["decode"]))
def test_token_by_token_equals_the_full_pass(variant, cell):
    case, arrays, own = setup(variant, cell)
    full = run(variant, case, arrays, own)
    if variant.decode is not None:
        equal(variant.decode(*arrays, own, dict(variant.static)), full, variant.tolerance)
        return
    q, k, v = arrays

    @jax.jit
    def step(q, k, v, own, t):
        return attend(variant, (q, k, v), own, masks.causal(t), t)

    for t in range(case.T):
        # What a cache holds beyond the present is arbitrary.
        now = [jnp.where(jnp.arange(case.S)[:, None, None] <= t, x, 9.0) for x in (k, v)]
        of_query = {n: x[:, t : t + 1] if n in variant.per_query else x for n, x in own.items()}
        out = step(q[:, t : t + 1], *now, of_query, jnp.int32(t))
        equal(out, full[:, t : t + 1], variant.tolerance)


@pytest.mark.parametrize(("variant", "cell"), cells(["jit"]))
def test_jit_changes_nothing(variant, cell):
    case, arrays, own = setup(variant, cell)
    want = run(variant, case, arrays, own)
    equal(attend(variant, arrays, own, case.mask()), want, variant.tolerance)


def two(variant, case):
    """Two calls' inputs, stacked: (arrays, own arrays that belong to rows, lengths), and others."""
    drawn = [variant.draw(case, seed) for seed in range(2)]
    stacked = [jnp.stack(pair) for pair in zip(*(arrays for arrays, _ in drawn), strict=True)]
    rows = {n: jnp.stack([own[n] for _, own in drawn]) for n in variant.per_row}
    lengths = jnp.stack([jnp.asarray(case.lengths_B), jnp.asarray(case.lengths_B)[::-1]])
    others = {n: x for n, x in drawn[0][1].items() if n not in variant.per_row}
    return (stacked, rows, lengths), others


def at(case, lengths_B):
    """The mask of a case with other lengths."""
    mask = masks.lengths(lengths_B)
    return masks.causal() & mask if case.causal else mask


@pytest.mark.parametrize(("variant", "cell"), cells(["vmap", "scan"]))
def test_vmap_and_scan_equal_single_calls(variant, cell):
    case = case_for(cell, variant.causal, variant.keys)
    mapped, others = two(variant, case)

    def one(arrays, rows, lengths_B):
        return attend(variant, arrays, {**rows, **others}, at(case, lengths_B))

    if cell == "vmap":
        found = jax.jit(jax.vmap(one))(*mapped)
    else:
        found = jax.jit(lambda xs: jax.lax.scan(lambda n, x: (n + 1, one(*x)), 0, xs)[1])(mapped)
    for i in range(2):
        arrays, rows, lengths_B = jax.tree.map(lambda x, i=i: x[i], mapped)
        own = {**rows, **others}
        want, _ = with_gradients(variant)(arrays, own, at(case, lengths_B), probe_of(case))
        equal(found[i], want, variant.tolerance)


@pytest.mark.parametrize(("variant", "cell"), cells(["remat"]))
def test_remat_changes_no_gradient(variant, cell):
    case, arrays, own = setup(variant, cell)
    again = jax.checkpoint(functools.partial(attend, variant), static_argnums=3)
    run = jax.jit(functools.partial(gradients, again))
    want = with_gradients(variant)(arrays, own, case.mask(), probe_of(case))
    equal(run(arrays, own, case.mask(), probe_of(case)), want, variant.tolerance)


@pytest.mark.parametrize(("variant", "cell"), cells(["shard_map", "8 devices"]))
def test_eight_devices_equal_one(variant, cell):
    case, arrays, own = setup(variant, cell)
    lengths_B, probe = jnp.asarray(case.lengths_B), probe_of(case)
    devices = jax.devices()[:DEVICES]
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    of_own = {name: P("data") if name in variant.per_row else P() for name in own}

    def whole(arrays, own, lengths_B, offset=0):
        return attend(variant, arrays, own, at(case, lengths_B), offset)

    def step(attend):
        return jax.jit(functools.partial(gradients, attend))

    want = step(whole)(arrays, own, lengths_B, probe)
    if cell == "shard_map":
        by_shard = jax.shard_map(
            whole, mesh=mesh, check_vma=True,
            in_specs=(P("data"), of_own, P("data")), out_specs=P("data"),
        )  # fmt: skip
        found = step(lambda *given: by_shard(*given[:-1]))(arrays, own, lengths_B, probe)
    else:
        row, placed = NamedSharding(mesh, P("data")), {}
        for name, x in own.items():
            placed[name] = jax.device_put(x, NamedSharding(mesh, of_own[name]))
        found = step(whole)(*jax.device_put((arrays,), row), placed,
                            *jax.device_put((lengths_B, probe), row))  # fmt: skip
        assert len(found[0].sharding.device_set) == DEVICES
    equal(jax.device_get(found), want, variant.tolerance)


@pytest.mark.parametrize(("variant", "cell"), cells(CELLS, possible=False))
def test_what_it_cannot_do_it_refuses_in_one_line(variant, cell):
    case, arrays, own = setup(variant, cell)
    if cell == "decode":  # one query at the end of all keys
        arrays, case = [arrays[0][:, -1:], *arrays[1:]], case_for("causal", variant.causal)
    mask = masks.causal(case.S - 1) if cell == "decode" else case.mask()
    with pytest.raises(ValueError) as told:
        offset = case.S - 1 if cell == "decode" else case.offset
        jax.eval_shape(lambda arrays, own: attend(variant, arrays, own, mask, offset), arrays, own)
    message = str(told.value)
    assert "\n" not in message and ": " in message and 20 < len(message) < 250


def test_reasons_name_cells():
    assert all(set(variant.cannot) <= set(CELLS) for variant in VARIANTS)
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_the_table_is_that_of_the_code():
    told = "python -m tests.conformance.matrix writes it anew"
    assert README.read_text(encoding="utf-8") == table(), told
