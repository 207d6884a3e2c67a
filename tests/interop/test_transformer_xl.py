"""Transformer-XL in and out: every way a file may name what is shared, and what is refused.

The published class left transformers with version 5. With its last, 4.57.6, ten configurations came
in and went out again with logits of four segments equal to 2.8e-7, no key missing or unexpected and
every weight bit for bit; the torch module that stands for it here agreed to 2.4e-7. Its logits,
gradients and greedy text are rows of the ledger, tests/parity.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import interop
from jaxformer.errors import UserError
from jaxformer.interop import place, table
from jaxformer.interop.table import Rule
from jaxformer.models import transformer_xl
from jaxformer.parallel import mesh
from tests.interop.conftest import equal, random_params

V = 71
# A config.json as 4.57.6 writes it, but for sizes.
PUBLISHED = {
    "adaptive": True, "architectures": ["TransfoXLLMHeadModel"], "attn_type": 0, "clamp_len": 5,
    "cutoffs": [20, 40], "d_embed": 32, "d_head": 8, "d_inner": 40, "d_model": 24, "div_val": 2,
    "dropatt": 0.0, "dropout": 0.1, "dtype": "float32", "eos_token_id": 0, "init": "normal",
    "init_range": 0.01, "init_std": 0.02, "layer_norm_epsilon": 1e-05, "mem_len": 7,
    "model_type": "transfo-xl", "n_head": 3, "n_layer": 2, "pre_lnorm": False,
    "proj_init_std": 0.01, "same_length": True, "sample_softmax": -1,
    "tie_projs": [False, True, True], "transformers_version": "4.57.6", "untie_r": True,
    "vocab_size": V,
}  # fmt: skip
AT = "transformer.layers.{}."
# What it writes of that config: names and shapes, as printed by it.
TENSORS = {
    "transformer.pos_emb.inv_freq": (12,),
    "transformer.word_emb.emb_layers.0.weight": (20, 32),
    "transformer.word_emb.emb_layers.1.weight": (20, 16),
    "transformer.word_emb.emb_layers.2.weight": (31, 8),
    "transformer.word_emb.emb_projs.0": (24, 32),
    "transformer.word_emb.emb_projs.1": (24, 16),
    "transformer.word_emb.emb_projs.2": (24, 8),
    "crit.cluster_weight": (2, 32),
    "crit.cluster_bias": (2,),
    "crit.out_layers.0.bias": (20,),
    "crit.out_layers.1.bias": (20,),
    "crit.out_layers.2.bias": (31,),
    "crit.out_projs.0": (24, 32),
    **{
        AT.format(i) + name: shape
        for i in range(2)
        for name, shape in {
            "dec_attn.qkv_net.weight": (72, 24), "dec_attn.r_net.weight": (24, 24),
            "dec_attn.o_net.weight": (24, 24), "dec_attn.r_w_bias": (3, 8),
            "dec_attn.r_r_bias": (3, 8), "dec_attn.layer_norm.weight": (24,),
            "dec_attn.layer_norm.bias": (24,), "pos_ff.CoreNet.0.weight": (40, 24),
            "pos_ff.CoreNet.0.bias": (40,), "pos_ff.CoreNet.3.weight": (24, 40),
            "pos_ff.CoreNet.3.bias": (24,), "pos_ff.layer_norm.weight": (24,),
            "pos_ff.layer_norm.bias": (24,),
        }.items()
    },
}  # fmt: skip
SHARED = {"cutoffs": [20], "div_val": 1, "d_embed": 16, "tie_projs": [False, True],
          "untie_r": False}  # fmt: skip


def folder_of(path, tensors=TENSORS, **changes):
    """Writes a published checkpoint with random weights; returns its folder."""
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({**PUBLISHED, **changes}))
    if tensors is not None:
        draw = np.random.default_rng(0).standard_normal
        save_file(
            {name: draw(shape).astype(np.float32) for name, shape in tensors.items()},
            path / "model.safetensors",
        )
    return path


def tensors_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def test_published_names_and_shapes_come_in_and_go_out(tmp_path):
    """Every tensor bit for bit, and the waves that the published class expects."""
    folder = folder_of(tmp_path / "in")
    assert interop.is_published(folder)
    model, params = interop.load_huggingface(folder)
    assert interop.published_config(folder) == ("transformer_xl", model.config)
    lines: list[str] = []
    interop.convert(folder, tmp_path / "out", say=lines.append)
    assert len(lines) == 1 and lines[0].startswith("transfo-xl: ")
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert set(before) == set(after)
    for name in set(before) - {"transformer.pos_emb.inv_freq"}:
        np.testing.assert_array_equal(before[name], after[name])
    waves = 10000.0 ** -(np.arange(0, 24, 2) / 24)
    np.testing.assert_allclose(after["transformer.pos_emb.inv_freq"], waves, rtol=1e-7)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    ours = {**written, "dtype": "float32"}
    unread = {"init", "init_range", "proj_init_std", "transformers_version"}
    assert {key for key in PUBLISHED if ours.get(key) != PUBLISHED[key]} == unread
    again, loaded = interop.load_huggingface(tmp_path / "out")
    equal(loaded, params)
    assert again.config == model.config


def test_every_configuration_of_the_ledger_comes_back(tmp_path):
    """Written by a torch module with the published names: equal configs, equal weights."""
    torch = pytest.importorskip("torch")
    from tests.parity.others import XL_CASES
    from tests.parity.others import transformer_xl as make

    for i, changes in enumerate(XL_CASES.values()):
        theirs = make(**changes)
        theirs.save_pretrained(tmp_path / f"in{i}")
        model, params = interop.load_huggingface(tmp_path / f"in{i}")
        interop.save_huggingface(tmp_path / f"out{i}", model, params)
        again, info = type(theirs).from_pretrained(tmp_path / f"out{i}", output_loading_info=True)
        assert not any(info.values()), info
        state = again.state_dict()
        for name, weight in theirs.state_dict().items():
            assert name.endswith("inv_freq") or torch.equal(weight, state[name]), name
        assert interop.load_huggingface(tmp_path / f"out{i}")[0].config == model.config


def test_segments_with_their_memory(tmp_path):
    """Three segments, of which each sees the memory of those before, as the torch module reads."""
    torch = pytest.importorskip("torch")
    from tests.parity.others import transformer_xl as make

    theirs = make(untie_r=False, clamp_len=7, mem_len=7)
    theirs.save_pretrained(tmp_path / "in")
    model, params = interop.load_huggingface(tmp_path / "in")
    apply, cache, mems = jax.jit(model.apply), transformer_xl.empty_memory(model.config, 2), None
    for seed in range(3):
        tokens = np.random.default_rng(seed).integers(0, V, (2, 5))
        with torch.no_grad():
            expected = theirs(torch.tensor(tokens), mems=mems)
        mems = expected.mems
        out = apply(params, {"tokens": jnp.asarray(tokens)}, cache=cache)
        cache = out.cache
        logits, wanted = model.logits(params, out.hidden_BTD), expected.logits.numpy()
        assert np.abs(logits - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_one_parameter_under_any_of_its_names(tmp_path):
    """What layers, tails or input and output share stands there once, twice, or by another name."""
    from safetensors.numpy import save_file

    config = transformer_xl.Config(
        vocab_size=V, width=24, num_layers=2, num_heads=3, feed_forward=40, embedding_size=16,
        cutoffs=(20,), memory_length=7,
    )  # fmt: skip
    model = transformer_xl.make(config)
    params = random_params(model)
    interop.save_huggingface(tmp_path / "in", model, params)
    written = tensors_of(tmp_path / "in")
    places = ("transformer.", *(AT.format(i) + "dec_attn." for i in range(2)))
    biases = [at + name for name in ("r_w_bias", "r_r_bias") for at in places]
    assert set(biases) <= set(written)  # 4.57 wants each: it does not tie them itself
    assert not {"crit.out_layers.0.weight", "crit.out_projs.1"} & set(written)
    tied = {
        "crit.out_layers.0.weight": written["transformer.word_emb.emb_layers.0.weight"].copy(),
        "crit.out_projs.1": written["transformer.word_emb.emb_projs.0"].copy(),
    }

    def load(**changes):
        """Loads what was written with tensors changed, or left out (None)."""
        held = {name: x for name, x in {**written, **changes}.items() if x is not None}
        save_file(held, tmp_path / "in" / "model.safetensors")
        return interop.load_huggingface(tmp_path / "in")[1]

    first, *layers = biases[:3]
    for changes in (
        tied,
        dict.fromkeys([*layers, *biases[4:]]),
        dict.fromkeys([first, layers[1], *biases[3:5]]),
        {**tied, "transformer.word_emb.emb_layers.0.weight": None,
         "transformer.word_emb.emb_projs.0": None},
        {name: None for name in written if name.endswith("inv_freq")},
    ):  # fmt: skip
        equal(load(**changes), params)
    for name, held in {**tied, layers[0]: written[layers[0]]}.items():
        with pytest.raises(UserError, match=f"'{name}' differs from"):
            load(**{name: held + 1})
    with pytest.raises(UserError, match=r"no file holds 'transformer\.layers\.\*\.dec_attn\.r_w_b"):
        load(**dict.fromkeys(biases[:3]))


def test_over_a_mesh_and_layer_by_layer_it_is_the_same(tmp_path, monkeypatch):
    shared = {**TENSORS}
    for name in [name for name in shared if name.startswith(("crit.", "transformer.word"))]:
        del shared[name]
    shared |= {
        "transformer.word_emb.emb_layers.0.weight": (V, 16),
        "transformer.word_emb.emb_projs.0": (24, 16), "crit.out_projs.0": (24, 16),
        "crit.out_layers.0.bias": (V,), "crit.cluster_weight": (1, 16), "crit.cluster_bias": (1,),
    }  # fmt: skip
    for name in [name for name in shared if name.endswith(("r_w_bias", "r_r_bias"))]:
        del shared[name]
    shared |= {"transformer.r_w_bias": (3, 8), "transformer.r_r_bias": (3, 8)}
    folder = folder_of(tmp_path / "in", shared, **SHARED)
    _, params = interop.load_huggingface(folder)
    made = mesh.make(mesh.Config(data=2, fsdp=2, tensor=2))
    equal(interop.load_huggingface(folder, mesh=made)[1], params)
    monkeypatch.setattr(place, "on_cpu", place.by_layer)
    equal(interop.load_huggingface(folder)[1], params)


def test_files_of_earlier_years(tmp_path):
    """Before transformers 4: n_token, tie_weight and what is left out by default."""
    folder = folder_of(tmp_path / "in")
    model, params = interop.load_huggingface(folder)
    held = json.loads((folder / "config.json").read_text())
    for key in ("vocab_size", "architectures", "pre_lnorm", "layer_norm_epsilon", "untie_r"):
        del held[key]
    old = {**held, "n_token": V, "tie_weight": True, "ext_len": 0, "tgt_len": 128}
    (folder / "config.json").write_text(json.dumps(old))
    again, loaded = interop.load_huggingface(folder)
    equal(loaded, params)
    assert again.config == model.config
    (folder / "config.json").write_text(json.dumps({**old, "tie_weight": False}))
    with pytest.raises(UserError, match=r"no file holds 'crit\.out_layers\.\*\.weight'"):
        interop.load_huggingface(folder)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"attn_type": 1}, "attn_type is 1; supported: 0"),
        ({"sample_softmax": 20}, "sample_softmax is 20; supported: -1 or 0"),
        ({"ext_len": 8}, "ext_len is 8; supported: 0"),
        (
            {"tie_projs": [True, True, True]},
            "tie_projs is [True, True, True]; supported: false for",
        ),
        ({"tie_projs": [False, True]}, "tie_projs is [False, True]; supported: false for the head"),
        ({"mem_len": 0}, "same_length is True, so mem_len must be above 0"),
        ({"d_head": 0}, "d_head is 0; it must be a positive integer"),
        ({"cutoffs": [40, 20]}, "model.cutoffs=(40, 20) must rise"),
        ({"cutoffs": 20}, "config.json does not describe a transfo-xl"),
        ({"cutoffs": [], "tie_projs": [False]}, "model.div_val=2 must be 1, or above it with"),
        ({"architectures": ["TransfoXLForSequenceClassification"]}, "architectures is"),
        ({"d_inner": 41}, "has shape [40, 24], and config.json makes it [41, 24]"),
    ],
)
def test_what_we_lack_is_one_line(changes, words, tmp_path):
    folder = folder_of(tmp_path / "in", **changes)
    with pytest.raises(UserError) as raised:
        interop.load_huggingface(folder)
    lines = [line for line in str(raised.value).split("\n") if words in line]
    assert lines and str(folder) in lines[0]


@pytest.mark.parametrize(
    "keys,words",
    [
        ({"activation": "gelu"}, "activation='gelu'"),
        ({"logit_soft_cap": 5.0}, "logit_soft_cap=5.0"),
    ],
)
def test_what_the_published_class_lacks_is_not_written(keys, words, tmp_path):
    config = transformer_xl.Config(vocab_size=V, width=8, num_heads=2, num_layers=1, **keys)
    model = transformer_xl.make(config)
    with pytest.raises(UserError) as raised:
        interop.save_huggingface(tmp_path / "out", model, random_params(model))
    assert words in str(raised.value) and "transfo-xl" in str(raised.value)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_how_a_text_is_read_does_not_hinder(tmp_path):
    """Lengths of texts and of segments are no part of the published model."""
    config = transformer_xl.Config(
        vocab_size=V, width=8, num_heads=2, num_layers=1, max_length=99, segment_length=4,
        memory_length=4, share_projections=False,
    )  # fmt: skip
    model = transformer_xl.make(config)
    interop.save_huggingface(tmp_path / "out", model, random_params(model))
    read = interop.load_huggingface(tmp_path / "out", segment_length=4, max_length=99)[0].config
    assert (read.segment_length, read.per_head, read.feed_forward_width) == (4, 4, 32)
    assert not read.share_projections


def test_a_copy_is_one_parameter_under_two_names():
    rules = (Rule("a", "w"), Rule("b", "w", use="copy"), Rule("c", "w", table.constant((1, 2)),
             use="write"))  # fmt: skip
    found = table.expand(rules, {"w": (3,)}).published
    assert {name: tensor.use for name, tensor in found.items()} == {
        "a": "both", "b": "both", "c": "write"
    }  # fmt: skip
    assert found["c"].shape == (2,)
    values = found["c"].slots[0].transform.publish(np.zeros(3, np.float32))
    np.testing.assert_array_equal(values, np.array([1, 2], np.float32))
    with pytest.raises(ValueError, match="is both 'a' and 'b'"):
        table.expand((Rule("a", "w"), Rule("b", "w")), {"w": (3,)})
