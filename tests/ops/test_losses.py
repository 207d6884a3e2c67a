"""Cross-entropy against torch and float64 numpy; the chunked head against the dense one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.ops import cross_entropy, linear_cross_entropy

B, T, D, V = 2, 7, 8, 13


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2, (B, T)).astype(np.float32)
    weights[0, 3] = weights[1, 6] = 0
    return {
        "x": rng.normal(size=(B, T, D)).astype(np.float32),
        "table": rng.normal(size=(V, D)).astype(np.float32),
        "bias": rng.normal(size=V).astype(np.float32),
        "labels": rng.integers(0, V, (B, T)).astype(np.int32),
        "weights": weights,
    }


def published(logits, labels, weights, z_loss, smoothing):
    """The formulas in float64: Szegedy 2016, section 7, and PaLM 2022, section 5."""
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    target = (1 - smoothing) * np.eye(V)[labels] + smoothing / V
    loss = -(target * (logits - log_z[..., None])).sum(-1) + z_loss * log_z**2
    return (loss * weights).sum(), weights.sum()


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_cross_entropy_is_the_published_formula(case, z_loss, smoothing):
    logits = case["x"] @ case["table"].T
    got = cross_entropy(
        logits, case["labels"], weights=case["weights"], z_loss=z_loss, label_smoothing=smoothing
    )
    want = published(logits, case["labels"], case["weights"], z_loss, smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_both_losses_equal_torch(case):
    torch = pytest.importorskip("torch")
    labels = np.where(case["weights"] > 0, case["labels"], -100)
    weights = (case["weights"] > 0).astype(np.float32)
    x, table = torch.tensor(case["x"], requires_grad=True), torch.tensor(case["table"])
    theirs = torch.nn.functional.cross_entropy(
        (x @ table.T).reshape(-1, V), torch.tensor(labels).reshape(-1).long(), label_smoothing=0.1
    )
    theirs.backward()

    def chunked(x):
        loss, count, _ = linear_cross_entropy(
            x, case["table"], labels, weights=weights, label_smoothing=0.1, chunk=4
        )
        return loss / count

    ours, gradient = jax.value_and_grad(chunked)(case["x"])
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-7)
    loss, count = cross_entropy(
        case["x"] @ case["table"].T, labels, weights=weights, label_smoothing=0.1
    )
    np.testing.assert_allclose(loss / count, theirs.item(), rtol=1e-6)


def dense_sum(x, table, bias, case, soft_cap):
    logits = jnp.einsum("btd,vd->btv", x, table) + bias
    if soft_cap:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    options = dict(weights=case["weights"], z_loss=1e-2, label_smoothing=0.1)
    return cross_entropy(logits, case["labels"], **options)[0] / 3


@pytest.mark.parametrize(("chunk", "soft_cap"), [(1, None), (6, 5.0), (1000, 5.0), (None, None)])
def test_chunked_equals_dense_with_gradients(case, chunk, soft_cap):
    def chunked(x, table, bias):
        return (
            linear_cross_entropy(
                x, table, case["labels"], bias_V=bias, weights=case["weights"], z_loss=1e-2,
                label_smoothing=0.1, soft_cap=soft_cap, chunk=chunk,
            )[0] / 3
        )  # fmt: skip

    arguments = case["x"], case["table"], case["bias"]
    dense = functools.partial(dense_sum, case=case, soft_cap=soft_cap)
    want = jax.value_and_grad(dense, argnums=(0, 1, 2))(*arguments)
    got = jax.value_and_grad(chunked, argnums=(0, 1, 2))(*arguments)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
    # Without a gradient another path runs.
    np.testing.assert_allclose(jax.jit(chunked)(*arguments), want[0], rtol=1e-6)


def test_gradient_by_finite_differences_in_float64(case):
    with jax.enable_x64(True):
        x, table, bias, weights = (
            jnp.asarray(case[name], jnp.float64) for name in ("x", "table", "bias", "weights")
        )

        def loss(x, table, bias, weights):
            return linear_cross_entropy(
                x, table, jnp.asarray(case["labels"]), bias_V=bias, weights=weights, z_loss=1e-2,
                label_smoothing=0.1, soft_cap=5.0, chunk=6,
            )[0]  # fmt: skip

        arguments = x, table, bias, weights + 0.5  # a weight of exactly 0 is a step, not a slope
        gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(*arguments)
        rng = np.random.default_rng(1)
        direction = [jnp.asarray(rng.normal(size=a.shape)) for a in arguments]
        ahead, behind = (
            loss(*(a + step * d for a, d in zip(arguments, direction, strict=True)))
            for step in (1e-5, -1e-5)
        )
        slope = sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-8)


def test_tokens_of_weight_zero_contribute_exactly_nothing(case):
    def run(x, labels, weights):
        def loss(x, table):
            return linear_cross_entropy(x, table, labels, weights=weights, chunk=4)[0]

        return jax.value_and_grad(loss, argnums=(0, 1))(x, case["table"])

    out = case["weights"] == 0
    poisoned = np.where(out[..., None], np.nan, case["x"])
    value, (d_x, d_table) = run(poisoned, np.where(out, -100, case["labels"]), case["weights"])
    clean, (_, clean_table) = run(case["x"], case["labels"], case["weights"])
    assert value == clean
    np.testing.assert_array_equal(d_table, clean_table)
    assert (np.asarray(d_x)[out] == 0).all() and (np.abs(np.asarray(d_x)[~out]).max(-1) > 0).all()
    logits = np.where(out[..., None], np.inf, case["x"] @ case["table"].T)
    gradient = jax.grad(
        lambda logits: cross_entropy(logits, case["labels"], weights=case["weights"])[0]
    )(logits)
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[out] == 0).all()


@pytest.mark.parametrize("label", [-1, V])
def test_a_label_outside_the_vocabulary_is_nan_not_clamped(case, label):
    labels = case["labels"].copy()
    labels[0, 0] = label
    assert np.isnan(linear_cross_entropy(case["x"], case["table"], labels)[0])
    assert np.isnan(cross_entropy(case["x"] @ case["table"].T, labels)[0])


def test_correct_sum_is_weighted_argmax_hits(case):
    labels = case["labels"].copy()
    best = (case["x"] @ case["table"].T).argmax(-1)
    labels[:, ::2] = best[:, ::2]
    want = ((best == labels) * case["weights"]).sum()
    got = linear_cross_entropy(
        case["x"], case["table"], labels, weights=case["weights"], chunk=4
    )  # fmt: skip
    np.testing.assert_allclose(got[1:], (case["weights"].sum(), want), rtol=1e-6)
    # Among equals the lowest index counts: an untrained head of zeros is right about token 0 only.
    zeros = np.zeros_like(case["table"])
    correct = linear_cross_entropy(case["x"], zeros, labels)[2]
    assert correct == (labels == 0).sum()


def test_bf16_matmuls_stay_bf16_and_accumulate_in_float32(case):
    x, table = jnp.asarray(case["x"], jnp.bfloat16), jnp.asarray(case["table"])

    def loss(x, table):
        return linear_cross_entropy(x, table, case["labels"], chunk=4)[0]

    for eqn in dots(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, table).jaxpr):
        assert [v.aval.dtype for v in eqn.invars] == [jnp.bfloat16] * 2
        assert eqn.outvars[0].aval.dtype == jnp.float32
    value, (d_x, d_table) = jax.value_and_grad(loss, argnums=(0, 1))(x, table)
    assert (value.dtype, d_x.dtype, d_table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    exact = functools.partial(dense_sum_plain, labels=case["labels"])
    rounded = x.astype(jnp.float32), table.astype(jnp.bfloat16).astype(jnp.float32)
    want, (want_x, want_table) = jax.value_and_grad(exact, argnums=(0, 1))(*rounded)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(d_table, want_table, atol=2e-2)
    np.testing.assert_allclose(d_x.astype(jnp.float32), want_x, atol=3e-2)


def dense_sum_plain(x, table, labels):
    return cross_entropy(jnp.einsum("btd,vd->btv", x, table), labels)[0]


def sub_jaxprs(jaxpr):
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sub_jaxprs(inner)


def dots(jaxpr):
    found = [e for j in sub_jaxprs(jaxpr) for e in j.eqns if e.primitive.name == "dot_general"]
    assert found
    return found


def largest(function, *arguments):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return max(v.aval.size for j in sub_jaxprs(jaxpr) for e in j.eqns for v in e.outvars)


def test_no_array_of_all_logits_exists_and_no_gradient_work_unless_asked(case):
    x, labels = jnp.ones((2, 64, D)), jnp.zeros((2, 64), jnp.int32)

    def loss(x, table):
        return linear_cross_entropy(x, table, labels, chunk=16)[0]

    assert largest(jax.grad(loss, argnums=(0, 1)), x, case["table"]) < 2 * 64 * V
    assert len(dots(jax.make_jaxpr(loss)(x, case["table"]).jaxpr)) == 1
    assert len(dots(jax.make_jaxpr(jax.grad(loss))(x, case["table"]).jaxpr)) == 3


def test_one_chunk_needs_no_loop(case):
    def loss(x):
        return linear_cross_entropy(x, case["table"], case["labels"])[0]

    jaxpr = jax.make_jaxpr(jax.grad(loss))(case["x"]).jaxpr
    names = {e.primitive.name for j in sub_jaxprs(jaxpr) for e in j.eqns}
    assert not names & {"scan", "while"}


def test_flat_tokens_and_more_axes_give_the_same(case):
    def run(shape):
        x, labels = case["x"].reshape(*shape, D), case["labels"].reshape(shape)
        return linear_cross_entropy(x, case["table"], labels, chunk=4)

    for shape in [(B * T,), (B, 1, T)]:
        np.testing.assert_allclose(run(shape), run((B, T)), rtol=1e-6)


def test_eight_devices_equal_one_and_gather_no_tokens():
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x = rng.normal(size=(8, 24, D)).astype(np.float32)
    table = rng.normal(size=(32, D)).astype(np.float32)
    labels = rng.integers(0, 32, (8, 24)).astype(np.int32)

    def loss(x, table, labels):
        total, count, correct = linear_cross_entropy(x, table, labels, chunk=32)
        return total / count, correct

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    want = function(x, table, labels)
    place = lambda array, *axes: jax.device_put(  # noqa: E731
        array, jax.NamedSharding(mesh, jax.P(*axes))
    )
    sharded = place(x, "data"), place(table, "tensor"), place(labels, "data")
    got = function(*sharded)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)
    assert "all-gather" not in function.lower(*sharded).compile().as_text()


def test_shapes_that_do_not_fit_are_told(case):
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(case["x"], case["table"][:, :-1], case["labels"])
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy(case["x"], case["labels"][:, 1:])
    with pytest.raises(ValueError, match="chunk is 0"):
        linear_cross_entropy(case["x"], case["table"], case["labels"], chunk=0)
