"""`model.attention` names a way to attend: how it is written, and a researcher's own function."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.interop import save_huggingface
from jaxformer.models import decoder, encoder
from jaxformer.modules import variants

OWN = """
from jaxformer import ops

def attend(q, k, v, *, mask, scale, width=3, offset=0):
    return ops.attention(q, k, v, mask=mask & ops.masks.window(width - 1, 0, offset), scale=scale)

NOT_A_FUNCTION = 3
"""
SMALL = dict(vocab_size=50, num_layers=2, width=32, num_heads=2, positions="rope")
TOKENS = jax.random.randint(jax.random.key(1), (2, 10), 0, 50)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_a_function_of_one_s_own_is_an_attention(own):
    """A window written by hand equals the window of the config: trained, and token by token."""
    mine = decoder.make(decoder.Config(attention=f"{own}:attend(width=4)", **SMALL))
    window = decoder.make(decoder.Config(window=4, **SMALL))
    params = window.init(jax.random.key(0))
    assert jax.tree.structure(mine.init(jax.random.key(0))) == jax.tree.structure(params)
    want = window.apply(params, {"tokens": TOKENS}).hidden_BTD
    got = mine.apply(params, {"tokens": TOKENS}).hidden_BTD
    np.testing.assert_allclose(got, want, atol=2e-6)
    cache, layers, steps = mine.init_cache(2, 10), mine.unstack(params), []
    for t in range(10):
        out = mine.apply(layers, {"tokens": TOKENS[:, t : t + 1]}, cache=cache)
        cache = out.cache
        steps.append(out.hidden_BTD)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), want, atol=2e-6)
    with pytest.raises(UserError, match="has no return_weights"):
        mine.apply(params, {"tokens": TOKENS}, return_attention=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sofmax", "did you mean 'softmax'"),
        ("softmax(3)", "arguments by keyword"),
        ("softmax(", "arguments by keyword"),
        ("softmax(width=3)", "softmax has no arguments"),
        ("OWN:attent", "no function 'attent' (did you mean 'attend'?)"),
        ("OWN:NOT_A_FUNCTION", "it has attend"),
        ("nowhere.py:attend", "there is no file nowhere.py"),
        ("sliding_window(left=-1)", "left must be 0 or more, not -1"),
        ("sliding_window(dilation=0)", "dilation must be 1 or more, not 0"),
        ("bigbird(block=0)", "block must be 1 or more"),
        ("linformer(projected=0)", "projected must be 1 or more"),
        ("linformer(sharing='all')", "sharing must be one of headwise, key_value, none"),
        ("performer(kernel='exp')", "kernel must be one of softmax, relu"),
        ("gated_linear(temperature=0)", "temperature must be above 0"),
        ("gated_linear(RUNNING=3)", "valid: rank, temperature, gate"),
        ("longformer(global_tokens='all')", "global_tokens must be one of given, first"),
    ],
)
def test_a_mistake_is_one_line(own, text, words):
    with pytest.raises(UserError) as error:
        variants.parse(text.replace("OWN", str(own)))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_window_of_two_sides_is_even():
    with pytest.raises(UserError, match="give it an even number"):
        encoder.Config(attention="longformer(window=3)", **SMALL)


@pytest.mark.parametrize("kind", variants.VARIANTS.values(), ids=list(variants.VARIANTS))
def test_what_is_valid_is_said_of_arguments_that_there_are(kind):
    assert set(kind.VALID) <= {field.name for field in dataclasses.fields(kind)}
    for field in dataclasses.fields(kind):  # and every word is said
        assert field.name == "name" or type(field.default) is not str or field.name in kind.VALID


def test_what_a_checkpoint_cannot_say_is_not_written(own, tmp_path):
    model = decoder.make(decoder.Config(attention=f"{own}:attend", **SMALL))
    with pytest.raises(UserError, match="attention"):
        save_huggingface(tmp_path / "out", model, model.init(jax.random.key(0)))
    assert not (tmp_path / "out").exists()
