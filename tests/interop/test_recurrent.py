"""The recurrent encoder-decoder in and out: its folder fills torch's own layers, strictly.

Logits, gradients and greedy text against those layers are rows of the ledger, tests/parity.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jaxformer import interop
from jaxformer.errors import UserError
from jaxformer.interop import place, table
from jaxformer.models import recurrent
from jaxformer.parallel import mesh, rules
from tests.interop.conftest import equal, random_params

V, E, H = 31, 6, 8
CONFIGS: dict[str, dict[str, Any]] = {
    "luong": dict(width=H),
    "luong, no feeding, untied": dict(
        width=H, input_feeding=False, embedding_size=E, tie_embeddings=False, head_bias=True
    ),
    "gru, one direction": dict(width=H, cell="gru", bidirectional=False, num_layers=3),
    "gru, bahdanau": dict(
        width=H, cell="gru", attention="bahdanau", attention_width=5, embedding_size=E,
        tie_embeddings=False, num_layers=1, start_id=2,
    ),
    "bahdanau, two vocabularies": dict(
        width=H, attention="bahdanau", share_embeddings=False, source_vocab_size=19, head_bias=True
    ),
}  # fmt: skip


def make(name: str, **keys):
    return recurrent.make(recurrent.Config(**{"vocab_size": V, **CONFIGS[name], **keys}))


def written(path, model, params):
    """Writes a model; returns the tensors of the file."""
    from safetensors.numpy import load_file

    interop.save_huggingface(path, model, params)
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read(name, tmp_path, monkeypatch):
    """Bit for bit, by every way into memory; and through `convert` with the same bytes."""
    model = make(name)
    params = random_params(model)
    written(tmp_path / "a", model, params)
    assert interop.is_published(tmp_path / "a")
    read, loaded = interop.load_huggingface(tmp_path / "a")
    equal(loaded, params)
    assert interop.published_config(tmp_path / "a") == ("recurrent", read.config)
    lines: list[str] = []
    interop.convert(tmp_path / "a", tmp_path / "b", say=lines.append)
    assert len(lines) == 1 and lines[0].startswith("rnn-seq2seq: ")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    monkeypatch.setattr(place, "on_cpu", place.by_layer)
    equal(interop.load_huggingface(tmp_path / "a")[1], params)


def test_over_a_mesh_it_is_the_same(tmp_path):
    """A device has some units of every gate, which lie apart in torch's matrix."""
    made = mesh.make(mesh.Config(data=2, fsdp=2, tensor=2))
    for i, name in enumerate(CONFIGS):
        model = make(name)
        params = random_params(model)
        written(tmp_path / str(i), model, params)
        loaded = interop.load_huggingface(tmp_path / str(i), mesh=made)[1]
        equal(loaded, params)
    leaf = loaded["encoder"]["layer_0_forward"]["in"]
    assert leaf.sharding.shard_shape(leaf.shape) == (4, 4, 2)
    assert leaf.sharding.spec == rules.spec("encoder/layer_0_forward/in", leaf.shape, made)


def test_a_part_of_merged_axes_is_several_windows():
    """Every part of [D, G, H], published as [G * H, D], read window by window."""
    ours = np.random.default_rng(0).standard_normal((4, 3, 6))
    for transform in (table.LINEAR, table.VECTOR, table.CONV1D):
        stored = transform.publish(ours).copy()
        for where in (
            (slice(2, 4), slice(None), slice(3, 6)),
            (slice(None), slice(1, 3), slice(None)),
            (slice(0, 2), slice(1, 2), slice(2, 4)),
            (slice(None), slice(None), slice(None)),
        ):
            part = np.zeros_like(ours[where])
            for piece, begin in transform.windows(ours.shape, where):
                view = transform.publish(part[piece])
                cut = (slice(b, b + n) for b, n in zip(begin, view.shape, strict=True))
                view[...] = stored[tuple(cut)]
            np.testing.assert_array_equal(part, ours[where])
    # Whole rows of the first axis behind which others are merged stay one window.
    whole = table.LINEAR.windows(ours.shape, (slice(1, 3), slice(1, 3), slice(None)))
    assert [begin for _, begin in whole] == [(6, 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_layers_take_it_strictly(name, tmp_path):
    """nn.LSTM and nn.GRU by load_state_dict; their cells too; a whole module by safetensors."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_model

    from tests.parity.torch_recurrent import RNNSeq2Seq

    model = make(name)
    c, params = model.config, random_params(model)
    held = {k: torch.tensor(x) for k, x in written(tmp_path / "a", model, params).items()}
    settings = json.loads((tmp_path / "a" / "config.json").read_text())

    def named(prefix: str) -> dict:
        return {k.removeprefix(prefix): x for k, x in held.items() if k.startswith(prefix)}

    layers = getattr(torch.nn, c.cell.upper())
    way = dict(bidirectional=c.bidirectional, batch_first=True)
    encoder = layers(settings["embedding_size"], H // (1 + c.bidirectional), c.num_layers, **way)
    encoder.load_state_dict(named("encoder."), strict=True)
    feeds = c.attention == "bahdanau" or c.input_feeding
    inputs = settings["embedding_size"] + H * feeds
    decoder = layers(inputs, H, c.num_layers, batch_first=True)
    decoder.load_state_dict(named("decoder."), strict=True)
    # torch's cells are its layers by other names, one for each.
    cell = getattr(torch.nn, f"{c.cell.upper()}Cell")(inputs, H)
    cell.load_state_dict({
        k.removesuffix("_l0"): x for k, x in named("decoder.").items() if k.endswith("_l0")
    }, strict=True)  # fmt: skip
    x = torch.randn(2, inputs)
    first = layers(inputs, H, batch_first=True)
    first.load_state_dict({k: x for k, x in named("decoder.").items() if k.endswith("_l0")})
    stepped = cell(x)[0] if c.cell == "lstm" else cell(x)
    torch.testing.assert_close(first(x[:, None])[0][:, 0], stepped)

    module = RNNSeq2Seq(**settings)
    missing, unexpected = load_model(module, tmp_path / "a" / "model.safetensors", strict=True)
    assert not missing and not unexpected
    for k, tensor in module.state_dict().items():
        assert torch.equal(tensor, held["embedding.weight" if k not in held else k]), k
    # And back: what torch wrote is what we wrote, in a tied module under either name.
    module.save_pretrained(tmp_path / "b")
    read, again = interop.load_huggingface(tmp_path / "b")
    equal(again, params)
    assert interop.published_config(tmp_path / "b") == interop.published_config(tmp_path / "a")
    assert read.config.cell == c.cell


def test_a_tied_output_may_stand_under_either_name(tmp_path):
    from safetensors.numpy import save_file

    model = make("luong")
    params = random_params(model)
    held = written(tmp_path / "a", model, params)
    assert "output.weight" not in held
    table_VE = held.pop("embedding.weight")
    for tensors in ({"output.weight": table_VE},
                    {"output.weight": table_VE, "embedding.weight": table_VE.copy()}):  # fmt: skip
        save_file({**held, **tensors}, tmp_path / "a" / "model.safetensors")
        equal(interop.load_huggingface(tmp_path / "a")[1], params)
    changed = {**held, "output.weight": table_VE, "embedding.weight": table_VE + 1}
    save_file(changed, tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="'output.weight' differs from 'embedding.weight'"):
        interop.load_huggingface(tmp_path / "a")


def test_how_it_begins_and_runs_does_not_hinder(tmp_path):
    keys = dict(forget_bias=0.0, init_range=0.5, dropout=0.3, unroll=4, compute_dtype="bfloat16")
    model = make("gru, bahdanau", max_length=77, **keys)
    written(tmp_path / "a", model, random_params(model))
    read = interop.load_huggingface(tmp_path / "a", **keys)[0].config
    assert read == model.config


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"cell": "rnn"}, "cell is 'rnn'; supported: 'lstm' or 'gru'"),
        ({"attention": "dot"}, "attention is 'dot'; supported: 'luong' or 'bahdanau'"),
        ({"attention_size": None}, "attention_size is None; it must be a positive integer"),
        ({"share_embeddings": False}, "source_vocab_size is None; it must be a positive integer"),
        ({"bidirectional": "yes"}, "bidirectional is 'yes'; supported: True or False"),
        ({"hidden_size": 9}, "model.width=9 is odd: each direction of a bidirectional encoder"),
        ({"tie_word_embeddings": True}, "model.embedding_size=6 is not model.width=8: the head"),
        ({"num_layers": 99}, "config.json makes num_layers 99, and the files hold"),
        ({"num_layers": 2}, "no file holds 'encoder.weight_ih_l1'"),
        ({"cell": "lstm"}, "'encoder.weight_ih_l0' has shape [12, 6], and config.json makes it"),
        ({"output_bias": True}, "no file holds 'output.bias'"),
        ({"architectures": ["Seq2SeqLSTM"]}, "architectures is 'Seq2SeqLSTM'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, words, tmp_path):
    model = make("gru, bahdanau")
    written(tmp_path / "a", model, random_params(model))
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError) as raised:
        interop.load_huggingface(tmp_path / "a")
    lines = [line for line in str(raised.value).split("\n") if words in line]
    assert lines and str(tmp_path / "a") in lines[0]


def test_what_the_layout_lacks_is_not_written(tmp_path):
    model = make("luong", logit_soft_cap=5.0)
    with pytest.raises(UserError, match="rnn-seq2seq, cannot have logit_soft_cap=5.0"):
        interop.save_huggingface(tmp_path / "a", model, random_params(model))
    assert not (tmp_path / "a").exists()
