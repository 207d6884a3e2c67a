"""FLOPs, peaks and speed."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest

from jaxformer.train import metrics


def shapes(**named):
    tree: dict = {}
    for name, shape in named.items():
        *folders, last = name.split("__")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = jax.ShapeDtypeStruct(shape, "float32")
    return tree


def test_flops_per_token_are_those_of_gpt2():
    """PaLM's 6 P + 12 L D T for GPT-2 124M at T=1024, computed by hand."""
    gpt2 = SimpleNamespace(num_layers=12, num_heads=12, width=768)
    params = shapes(
        embed__tokens=(50257, 768), embed__positions=(1024, 768), layers__x=(12, 7087872)
    )
    assert metrics.matmul_parameters(params) == 50257 * 768 + 12 * 7087872
    flops = metrics.flops_per_token(metrics.matmul_parameters(params), gpt2, 1024)
    assert flops == pytest.approx(6 * 123_651_840 + 113_246_208)


def test_flops_count_the_matmuls_that_xla_counts():
    """The formula is two FLOPs per multiply-add of the forward pass, three times."""
    import jax.numpy as jnp

    L, N, H, T, F = 1, 2, 8, 16, 32
    D = N * H

    def forward(x_TD, q, k, v, out, w1, w2):
        q, k, v = (jnp.einsum("td,dnh->nth", x_TD, w) for w in (q, k, v))
        x_TD = jnp.einsum(
            "nts,nsh,nhd->td", q @ k.swapaxes(1, 2), v, out, optimize=[(0, 1), (0, 1)]
        )
        return x_TD @ w1 @ w2

    sizes = [(T, D), *[(D, N, H)] * 3, (N, H, D), (D, F), (F, D)]
    arrays = [jax.ShapeDtypeStruct(size, "float32") for size in sizes]
    cost = jax.jit(forward).lower(*arrays).compile().cost_analysis()
    model = SimpleNamespace(num_layers=L, num_heads=N, width=D)
    expected = metrics.flops_per_token(4 * D * D + 2 * D * F, model, T) * T / 3
    assert cost["flops"] == pytest.approx(expected, rel=0.02)


def test_lookup_tables_cost_nothing_unless_tied():
    tied = shapes(embed__tokens=(10, 4), embed__positions=(8, 4))
    untied = shapes(embed__tokens=(10, 4), embed__positions=(8, 4), head__table=(10, 4))
    assert metrics.matmul_parameters(tied) == metrics.matmul_parameters(untied) == 40


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 125),
        ("TPU v2", 22.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_peaks_by_device_kind(kind, tera):
    assert metrics.peak_flops([SimpleNamespace(device_kind=kind)] * 2) == 2 * tera * 1e12


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA L40", "NVIDIA GeForce RTX 4090", "NVIDIA A10"])
def test_an_unknown_device_has_no_peak(kind):
    known = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    assert metrics.peak_flops([known, SimpleNamespace(device_kind=kind)]) is None


def test_meter_takes_time_from_burst_to_burst_and_leaves_pauses_out():
    now = 100.0
    meter = metrics.Meter(50, clock=lambda: now)
    assert meter.steps_per_second is None
    for burst in range(4):  # ten steps in each two seconds, read all at once
        now += 2.0
        for step in range(10):
            meter.update(50 + 10 * burst + step + 1)
        if burst == 1:
            now += 60.0  # an evaluation
            meter.resume()
    meter.settle()
    assert meter.steps_per_second == pytest.approx(5.0)


def test_meter_forgets_old_speed():
    now = 0.0
    meter = metrics.Meter(0, clock=lambda: now)
    for step in range(1, 200):
        now += 10.0 if step < 20 else 1.0
        meter.update(step)
    assert meter.steps_per_second == pytest.approx(1.0)
