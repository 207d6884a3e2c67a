"""From a config to a step: each objective gets the batches that it needs, or says what is wrong."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxformer.errors import UserError
from jaxformer.train.experiment import build
from jaxformer.train.prepare import prepare

TEXT = "The cat sat. A dog ran to the red house.\nIt was late. Birds sang in the old tree.\n\n"
PADDED = {"layout": "padded", "labels": "tags"}
SMALL = dict(num_layers=1, width=8, num_heads=2, max_length=64)


def config(name: str, data: dict, family: str = "encoder", **model) -> ConfigDict:
    return ConfigDict({
        "model": {"family": family, **SMALL, **model}, "objective": {"name": name},
        "data": {"seq_len": 32, "batch_size": 8, "tokenizer": "wordpiece:120", **data},
    })  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "text.txt").write_text(TEXT * 200)
    records = [
        {
            "text": TEXT[i % 40 :], "target": TEXT[: 30 + i % 9], "label": i % 2, "score": i / 9,
            "tokens": [f"name{i}", "ran"], "tags": ["A", "B"],
        }
        for i in range(40)
    ]  # fmt: skip
    lines = "\n".join(json.dumps(record) for record in records)
    (folder / "rows.jsonl").write_text(lines)
    return folder


CASES = {
    "masked_lm": ("text.txt", {"layout": "packed"}, "encoder"),
    "bert_pretraining": ("text.txt", {"layout": "sentence_pairs"}, "encoder"),
    "replaced_token": ("text.txt", {"layout": "packed"}, "electra"),
    "span_corruption": ("text.txt", {"layout": "windows", "extra_ids": 10}, "encoder_decoder"),
    "infilling": ("text.txt", {"layout": "windows"}, "encoder_decoder"),
    "seq2seq": ("rows.jsonl", {"layout": "seq2seq", "target_field": "target"}, "encoder_decoder"),
    "tag": ("rows.jsonl", {"layout": "padded", "labels": "tags"}, "encoder"),
    "classify": (
        "rows.jsonl",
        {"layout": "padded", "labels": "value", "label_field": "score"},
        "encoder",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_batches_fit(name, files, tmp_path):
    """A training batch, and the validation split's last one, with rows of padding only."""
    file, data, family = CASES[name]
    data = {**data, "source": str(files / file), "cache_dir": str(tmp_path)}
    model = {"num_token_types": 2} if family == "encoder" else {}
    run = prepare(config(name, data, family, **model), say=lambda words: None)
    params = jax.tree.map(lambda x: jnp.full(x.shape, 0.01), run.param_shapes)
    loss_fn = jax.jit(run.loss_fn, static_argnums=3)
    validation = run.dataset.validation
    for train, batch in (
        (True, run.dataset.train.batch(0, 0)),
        (False, validation.batch(validation.num_batches - 1)),
    ):
        loss, metrics = loss_fn(params, batch, jax.random.key(0), train)
        assert np.isfinite(loss) and metrics["loss"][1] > 0
    assert run.model.config.vocab_size == run.dataset.info.vocab_size
    assert (run.baseline is not None) == run.predicts_text


@pytest.mark.parametrize("chosen, words", [
    (config("tag", {"layout": "padded"}), "reads data.labels=tags, but it is ''"),
    (config("classify", PADDED), "labels=field or package or value"),
    (config("tag", PADDED, "decoder"), "needs model.family=encoder"),
    (config("extractive_qa", {"layout": "padded"}), "reads data.layout=qa, but it is padded"),
    (config("seq2seq", {"layout": "seq2seq", "target_field": "b", "source_len": 100},
            "encoder_decoder"), "data.source_len=100 is longer than model.max_length=64"),
])  # fmt: skip
def test_what_does_not_fit_is_told(chosen, words):
    with pytest.raises(UserError, match=words):
        build(chosen)


def test_rows_that_grow_too_long_are_told(files, tmp_path):
    """Infilling adds special tokens to rows, which the position table may not have."""
    data = {"layout": "windows", "source": str(files / "text.txt"), "cache_dir": str(tmp_path)}
    chosen = config("infilling", data, "encoder_decoder", max_length=32)
    with pytest.raises(UserError, match=r"longer than model.max_length=32; try"):
        prepare(chosen, say=lambda words: None)


def test_targets_begin_with_what_the_model_begins_with(files, tmp_path):
    data = {**CASES["seq2seq"][1], "source": str(files / "rows.jsonl"), "cache_dir": str(tmp_path)}
    run = prepare(config("seq2seq", data, "encoder_decoder", start_id=7), say=lambda words: None)
    assert run.dataset.info.start_id == run.model.config.start_id == 7
    assert (run.dataset.train.batch(0, 0)["tokens"][:, 0] == 7).all()
    with pytest.raises(UserError, match=r"try --config.data.start_id=7"):
        prepare(
            config("seq2seq", {**data, "start_id": 1}, "encoder_decoder", start_id=7),
            say=lambda words: None,
        )
