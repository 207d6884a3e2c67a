"""Optimizers against torch, optax and their own promises. L=3 layers, D=6, N=2, H=3, F=8."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxformer.errors import UserError
from jaxformer.train import optimizer as optimizers
from jaxformer.train.muon import as_matrices, input_axes, orthogonalise
from jaxformer.train.optimizer import Config, make_optimizer, make_schedule

L, D, N, H, F, V = 3, 6, 2, 3, 8, 11
SHAPES = {
    "embed": {"tokens": (V, D)},
    "layers": {
        "attention": {"q": (L, D, N, H), "q_bias": (L, N, H), "out": (L, N, H, D)},
        "attention_norm": {"scale": (L, D)},
        "feed_forward": {"in": (L, D, F), "out": (L, F, D)},
    },
    "final_norm": {"scale": (D,)},
    "head": {"table": (V, D)},
}


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def flat(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {optimizers.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def once(config: Config, gradients, params=None, total: int = 10):
    """The first update, by name, and the state after it."""
    params = tree(0) if params is None else params
    optimizer = make_optimizer(config, total, params)
    updates, state = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(
        gradients, params
    )
    return flat(updates), state


def run(config: Config, steps: int = 3, total: int = 10, params=None):
    """The parameters after some steps on fixed random gradients, and the optimizer's state."""
    params = tree(0) if params is None else params
    optimizer = make_optimizer(config, total, params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, tree(100 + i))
    return params, state


PLAIN = dict(schedule="constant", warmup_steps=0, clip_norm=0.0)


def test_adamw_with_clipping_and_masked_decay_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: no oracle")
    config = Config(learning_rate=0.01, weight_decay=0.3, schedule="constant", warmup_steps=0)
    ours = flat(run(config)[0])
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in flat(tree(0)).items()}
    bare = [n for n in theirs if n.endswith(("scale", "bias"))]
    groups = [
        {"params": [theirs[n] for n in theirs if n in bare], "weight_decay": 0.0},
        {"params": [theirs[n] for n in theirs if n not in bare], "weight_decay": 0.3},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for i in range(3):
        for name, gradient in flat(tree(100 + i)).items():
            theirs[name].grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        adamw.step()
    for name, x in theirs.items():
        np.testing.assert_allclose(
            ours[name], x.detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=name
        )


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_equals_plain_optax(name):
    config = Config(name=name, learning_rate=0.01, no_decay=(), **PLAIN)
    alias = {"adamw": optax.adamw, "lion": optax.lion}[name]
    params = tree(0)
    theirs = alias(0.01, b1=0.9, b2=0.95, weight_decay=0.1)
    state, update = theirs.init(params), jax.jit(theirs.update)
    for i in range(3):
        updates, state = update(tree(100 + i), state, params)
        params = optax.apply_updates(params, updates)
    for key, x in flat(run(config)[0]).items():
        np.testing.assert_allclose(x, flat(params)[key], rtol=1e-5, atol=1e-7, err_msg=key)


def test_adafactor_treats_each_layer_as_if_alone():
    """The stack of wide matrices equals one layer after the other, factors and RMSs included."""
    rng = np.random.default_rng(0)
    stack = jnp.asarray(rng.normal(size=(2, 130, 2, 65)) * [[[[1]]], [[[9]]]], jnp.float32)
    gradient = jnp.asarray(rng.normal(size=stack.shape), jnp.float32)
    config = Config(name="adafactor", weight_decay=0.0, **PLAIN)

    def update(weight, gradient):
        params = {"layers": {"attention": {"q": weight}}}
        new, state = once(config, {"layers": {"attention": {"q": gradient}}}, params)
        return new["layers/attention/q"], state

    both, state = update(stack, gradient)
    for i in range(2):
        one, _ = update(stack[i : i + 1], gradient[i : i + 1])
        np.testing.assert_allclose(both[i], one[0], rtol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < stack.size / 10  # it is factored


def test_muon_on_stacks_equals_optax_on_single_matrices():
    config = Config(name="muon", learning_rate=0.02, nesterov=False, no_decay=(), **PLAIN)
    ours = flat(run(config, steps=2)[0])
    names = ("attention/q", "attention/out", "feed_forward/out")

    def matrices(params):
        stacks = {n: as_matrices(f"layers/{n}", params[f"layers/{n}"]) for n in names}
        return {n: [stack[i] for i in range(L)] for n, stack in stacks.items()}

    params = jax.tree.map(jnp.asarray, matrices(flat(tree(0))))
    theirs = optax.contrib.muon(0.02, beta=0.95, nesterov=False, weight_decay=0.1, eps=1e-7)
    state, update = theirs.init(params), jax.jit(theirs.update)
    for i in range(2):
        updates, state = update(matrices(flat(tree(100 + i))), state, params)
        params = optax.apply_updates(params, updates)
    for n, stack in params.items():
        expected = np.stack(stack).reshape(ours[f"layers/{n}"].shape)
        np.testing.assert_allclose(ours[f"layers/{n}"], expected, rtol=1e-4, atol=1e-5, err_msg=n)


@pytest.mark.parametrize(("rms", "adjust"), [(0.0, "original"), (0.2, "match_rms_adamw")])
def test_muon_equals_torch(rms, adjust):
    """Nesterov, scale and decay as in torch, whose weights are [out, in] and whose matmuls bf16."""
    torch = pytest.importorskip("torch", reason="torch is not installed: no oracle")
    config = Config(name="muon", learning_rate=0.02, muon_rms=rms, no_decay=(), **PLAIN)
    name = "layers/feed_forward/in"
    before, after = flat(tree(0))[name], flat(run(config)[0])[name]
    for i in range(L):
        weight = torch.nn.Parameter(torch.tensor(before[i].T.copy()))
        muon = torch.optim.Muon([weight], lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust)
        for j in range(3):
            weight.grad = torch.tensor(flat(tree(100 + j))[name][i].T.copy())
            muon.step()
        moved = weight.detach().numpy().T - before[i]
        assert np.linalg.norm(after[i] - before[i] - moved) < 0.03 * np.linalg.norm(moved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_newton_schulz_makes_singular_values_nearly_one(dtype):
    x_LIO = jax.random.normal(jax.random.key(0), (2, 16, 40))
    values = np.linalg.svd(orthogonalise(x_LIO, 5, jnp.dtype(dtype)), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3
    tall = orthogonalise(x_LIO.swapaxes(1, 2), 5, jnp.dtype(dtype)).swapaxes(1, 2)
    np.testing.assert_allclose(tall, orthogonalise(x_LIO, 5, jnp.dtype(dtype)), atol=1e-5)
    assert not np.any(orthogonalise(jnp.zeros((1, 4, 4)), 5))


def test_muon_takes_the_matrices_in_layers_and_adam_the_rest():
    config = Config(name="muon", learning_rate=0.02, adam_learning_rate=0.004)
    rules = optimizers.make_rules(config, tree(0))
    matrices = {name for name, rule in rules.items() if rule.group == "muon"}
    heads = {"layers/attention/q", "layers/attention/out"}
    assert matrices == heads | {"layers/feed_forward/in", "layers/feed_forward/out"}
    assert all(rule.rate == ((1.0,) if n in matrices else (0.2,)) for n, rule in rules.items())
    assert optimizers.describe(config, tree(0))["head/table"] == "adam, rate x0.2, decay 0.1"


def test_muon_refuses_a_stacked_tensor_whose_axes_it_does_not_know():
    with pytest.raises(ValueError, match="layers/mixer/kernel"):
        input_axes("layers/mixer/kernel", (L, 2, 3, 4))


def test_decay_shrinks_only_what_it_should():
    zero = jax.tree.map(jnp.zeros_like, tree(0))
    config = Config(learning_rate=0.5, weight_decay=0.2, no_decay=(r".*bias", r"embed/.*"), **PLAIN)
    params = flat(tree(0))
    for name, update in once(config, zero)[0].items():
        factor = 0.0 if name in ("embed/tokens", "layers/attention/q_bias") else -0.1
        np.testing.assert_allclose(update, factor * params[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_frozen_parameters_keep_every_bit_and_have_no_state(name):
    params = tree(0)
    params["embed"]["tokens"] = params["embed"]["tokens"].at[0, 0].set(-0.0)
    frozen = (r"embed/.*", r"layers/attention_norm/.*", r"layers/[01]/.*")
    after, state = run(Config(name=name, frozen=frozen), params=params)
    before, after, slots = flat(params), flat(after), flat(state)
    for key in before:
        same = before[key].view(np.int32) == after[key].view(np.int32)
        if key.startswith("embed") or "attention_norm" in key:
            assert same.all(), key
            assert not any(slot.endswith(key) for slot in slots), key
        elif key.startswith("layers/"):  # the first two layers of a stack are frozen, the last not
            assert same[:2].all() and not same[2].all(), key
        else:
            assert not same.all(), key


def test_frozen_gradients_do_not_count_in_the_clipping_norm():
    config = Config(name="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0.0, clip_norm=1.0,
                    schedule="constant", warmup_steps=0, frozen=(r"embed/.*",))  # fmt: skip
    gradients = tree(1)
    gradients["embed"]["tokens"] = jnp.full((V, D), jnp.nan)
    updates, _ = once(config, gradients)
    assert sum(np.sum(np.square(x)) for x in updates.values()) == pytest.approx(1.0, rel=1e-5)


def test_layer_decay_is_an_exact_ratio_per_layer():
    """Plain SGD moves by rate times gradient, so the ratio of the two is the rate."""
    config = Config(name="sgd", momentum=0.0, nesterov=False, learning_rate=1.0, weight_decay=0.0,
                    layer_decay=0.5, **PLAIN)  # fmt: skip
    gradients = flat(tree(1))
    for name, update in once(config, tree(1))[0].items():
        rate = -update / gradients[name]
        if name.startswith("layers/"):
            for i in range(L):
                np.testing.assert_array_equal(rate[i], np.float32(0.5 ** (L - i)), err_msg=name)
        else:
            expected = 0.5 ** (L + 1) if name.startswith("embed") else 1.0
            np.testing.assert_array_equal(rate, np.float32(expected), err_msg=name)


def test_state_is_float32_and_named_like_the_parameters():
    names = flat(tree(0))
    for name in optimizers.OPTIMIZERS:
        optimizer = make_optimizer(Config(name=name), 10, tree(0))
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer.init, tree(0)))
        state = {optimizers.path_name(path): leaf for path, leaf in leaves}
        assert {leaf.dtype for leaf in state.values()} <= {np.dtype("float32"), np.dtype("int32")}
        if name != "adafactor":
            for key, leaf in state.items():
                shapes = [x.shape for n, x in names.items() if key.endswith("/" + n)]
                assert leaf.ndim == 0 or leaf.shape in shapes, key


def rate(name: str, step: int, **kwargs) -> float:
    config = Config(schedule=name, learning_rate=2.0, warmup_steps=10, final_fraction=0.1, **kwargs)
    schedule = make_schedule(config, 110)
    traced = float(jax.jit(schedule)(jnp.int32(step)))
    assert float(schedule(step)) == pytest.approx(traced, rel=1e-5)  # on the host as on the device
    return traced


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_warm_up_rises_linearly_to_the_peak(name):
    assert rate(name, 0) == pytest.approx(2 / 11)
    assert rate(name, 4) == pytest.approx(2 * 5 / 11)
    assert rate(name, 10) == pytest.approx(2.0)


def test_schedules_at_their_corners():
    assert rate("constant", 109) == 2.0
    assert rate("cosine", 60) == pytest.approx(2 * 0.55)  # half way
    assert rate("cosine", 110) == pytest.approx(0.2)
    assert rate("linear", 110) == pytest.approx(0.2)
    assert rate("linear", 60) == pytest.approx(2 * 0.55)
    assert rate("wsd", 88, decay_fraction=0.2) == pytest.approx(2.0)  # the last 22 steps fall
    assert rate("wsd", 87, decay_fraction=0.2) == pytest.approx(2.0)
    assert rate("wsd", 99, decay_fraction=0.2) == pytest.approx(2 * 0.55)
    assert rate("wsd", 110, decay_fraction=0.2) == pytest.approx(0.2)
    assert rate("inverse_sqrt", 43) == pytest.approx(1.0)  # step 44 counted from 1, 4 times 11


def test_the_rate_falls_as_the_schedule_says():
    config = Config(name="sgd", momentum=0.0, nesterov=False, learning_rate=1.0, weight_decay=0.0,
                    clip_norm=0.0, schedule="linear", warmup_steps=0, final_fraction=0.0,
                    )  # fmt: skip
    before = flat(tree(0))["head/table"]
    after = flat(run(config, steps=4, total=4)[0])["head/table"]
    total = sum((1 - i / 4) * flat(tree(100 + i))["head/table"] for i in range(4))
    np.testing.assert_allclose(after, before - total, rtol=1e-5, atol=1e-6)


def test_average_of_parameters():
    ema = optimizers.update_ema({"a": jnp.float32(1.0)}, {"a": jnp.float32(2.0)}, 0.75)
    assert float(ema["a"]) == 1.25
    third = {"a": jnp.float32(1 / 3)}
    assert float(optimizers.update_ema(third, third, 0.999)["a"]) == float(third["a"])


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"name": "adamm"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate must be more than 0"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay"),
        ({"frozen": ("(",)}, "not a regular expression"),
    ],
)
def test_mistakes_are_named_in_one_line(mistake, words):
    with pytest.raises(UserError) as caught:
        Config(**mistake)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_frozen_pattern_that_matches_nothing_is_a_mistake():
    with pytest.raises(UserError, match="matches no parameter.*did you mean 'embed/tokens'"):
        make_optimizer(Config(frozen=("embed/token",)), 10, tree(0))
