"""`jaxformer convert`: a published checkpoint, or a run of ours, to a folder for transformers."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import cli, data, interop
from jaxformer.errors import UserError
from jaxformer.models import decoder
from tests.interop.conftest import V, equal, random_params

TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "added_tokens": [
        {"id": i, "content": name, "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for i, name in enumerate(("[PAD]", "[UNK]", "<eos>"))
    ],
    "model": {"type": "WordLevel", "unk_token": "[UNK]",
              "vocab": {"[PAD]": 0, "[UNK]": 1, "<eos>": 2, "a": 3, "b": 4}},
}  # fmt: skip


def test_a_published_checkpoint(checkpoint, tmp_path, capsys):
    """Weights keep their bits and type; tokenizer, ids and labels come along; code does not."""
    _, model, params = checkpoint("bert", num_classes=3, masked_head=False)
    half = jnp.bfloat16
    params = {k: _cast(v, half) for k, v in params.items()}
    source = tmp_path / "half"
    interop.save_huggingface(source, model, params)
    config = json.loads((source / "config.json").read_text())
    kept = {"id2label": {"0": "a", "1": "b", "2": "c"}, "pad_token_id": 0, "eos_token_id": 5}
    (source / "config.json").write_text(json.dumps({**config, **kept, "auto_map": {"x": "y"}}))
    for name in ("tokenizer_config.json", "vocab.txt", "spiece.model", "x.py", "x.bin"):
        (source / name).write_text(name)
    (source / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    target = tmp_path / "a" / "b"
    assert cli.main(["convert", "--from", str(source), "--to", str(target)]) == 0
    said = capsys.readouterr().out.strip().split("\n")
    assert len(said) == 1 and said[0].startswith("bert: ") and str(target) in said[0]
    assert {path.name for path in target.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "vocab.txt", "spiece.model",
    }  # fmt: skip
    written = json.loads((target / "config.json").read_text())
    assert {key: written[key] for key in kept} == kept and "auto_map" not in written
    assert written["torch_dtype"] == "bfloat16"
    equal(interop.load_huggingface(target, dtype="bfloat16")[1], params)


def _cast(tree, dtype):
    if isinstance(tree, dict):
        return {name: _cast(leaf, dtype) for name, leaf in tree.items()}
    return jnp.asarray(tree, dtype)


def test_words_of_the_command(checkpoint, tmp_path, capsys):
    folder, _, _ = checkpoint("gpt2")
    for words, expected in (
        ([], "convert needs --from"),
        (["--from", str(folder)], "convert needs --to"),
        (["--from", str(folder), "--to", str(folder)], "nothing is overwritten"),
        (["--from", str(folder), "--too", "x"], "did you mean '--to'"),
        (["--from", str(folder), "--to", "x", "--config.seed=1"], "leave out --config.seed=1"),
        (["--from", str(tmp_path / "no"), "--to", "x"], "no such folder"),
    ):
        assert cli.main(["convert", *words]) == 2
        error = capsys.readouterr().err
        assert expected in error and len(error.strip().split("\n")) == 1


EXPERIMENT = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(
        model=dict(family="decoder", num_layers=2, width=32, num_heads=2, max_length=32),
        data=dict(tokenizer="bpe:300", seq_len=32, batch_size=8),
        train=dict(steps=2, eval_tokens=256),
        generate=dict(max_new_tokens=4),
    ))
"""


@pytest.mark.slow
def test_a_run_of_ours(tmp_path, capsys):
    """Trained for two steps with a tokenizer of its own: transformers loads both."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a small text, {i * i} words long.\n" for i in range(400)))
    run, target = tmp_path / "run", tmp_path / "out"
    experiment = tmp_path / "experiment.py"
    experiment.write_text(EXPERIMENT)
    words = [f"--config.data.source={text}", f"--config.data.cache_dir={tmp_path / 'cache'}"]
    assert cli.main(["train", f"--config={experiment}", f"--workdir={run}", *words]) == 0
    capsys.readouterr()
    assert cli.main(["convert", "--from", str(run), "--to", str(target)]) == 0
    assert capsys.readouterr().out.startswith("gpt2: ")

    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    ours = data.load_tokenizer(run)
    assert tokenizer("line 7 of a")["input_ids"] == ours.encode("line 7 of a")
    assert tokenizer.eos_token_id == ours.eos_id
    torch = pytest.importorskip("torch")
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    assert model.config.eos_token_id == ours.eos_id
    loaded, params = interop.load_huggingface(target)
    tokens = np.array([ours.encode("line 7 of a small text")])
    logits = loaded.logits(params, loaded.apply(params, {"tokens": jnp.asarray(tokens)}).hidden_BTD)
    expected = model(torch.tensor(tokens)).logits.detach().numpy()
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()


def test_a_tokenizer_of_ours(tmp_path):
    model = decoder.make(decoder.Config(vocab_size=V, width=8, num_layers=1, num_heads=1))
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    tokenizer = data.load_tokenizer(tmp_path)
    interop.save_huggingface(tmp_path / "out", model, random_params(model), tokenizer=tokenizer)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<eos>" and settings["model_max_length"] == 1024
    assert data.load_tokenizer(tmp_path / "out").encode("a b") == tokenizer.encode("a b")


def test_check_tokenizer(tmp_path):
    config = decoder.Config(vocab_size=5, width=8, num_heads=1)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(TOKENIZER))
    interop.check_tokenizer(path, config)
    path.write_text(json.dumps({"jaxformer": "byte"}))
    with pytest.raises(UserError, match="ids up to 261, but the embedding has 5 rows"):
        interop.check_tokenizer(path, config)
