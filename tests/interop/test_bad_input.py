"""Whatever is wrong with a folder is told in one line each, all at once; nothing is written."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxformer import cli, interop
from jaxformer.errors import UserError
from jaxformer.interop import huggingface, place
from jaxformer.models import decoder, encoder
from tests.interop.conftest import V, make_model, random_params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, LAST = "transformer.wte.weight", "transformer.h.2.ln_2.bias"


def config(**keys) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))

    return damage


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return damage


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(content)


def header(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Rewrites the header's bytes without the library, which would refuse to."""

    def damage(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(whole[:8], "little")
        head = change(whole[8 : 8 + size])
        (folder / WEIGHTS).write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + size :])

    return damage


def cut(count: int) -> Callable[[Path], object]:
    return lambda folder: text(WEIGHTS, (folder / WEIGHTS).read_bytes()[:count])(folder)


def index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Splits the checkpoint into two shards with an index, and changes the index."""

    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names, mapping = list(found), {}
        for i, some in enumerate((names[::2], names[1::2])):
            save_file({name: found[name] for name in some}, folder / f"part-{i}.safetensors")
            mapping |= dict.fromkeys(some, f"part-{i}.safetensors")
        whole = {"metadata": {}, "weight_map": mapping}
        change(whole)
        (folder / INDEX).write_text(json.dumps(whole))

    return damage


def only_bin(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def put(name: str, file: str) -> Callable[[dict], object]:
    return lambda whole: whole["weight_map"].update({name: file})


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: No such file"),
    "no json": (text("config.json", "{"), "config.json is not JSON"),
    "no object": (text("config.json", "[1]"), "config.json holds a list"),
    "key twice": (text("config.json", '{"a": 1, "a": 2}'), "the key 'a' stands there twice"),
    "no model type": (text("config.json", "{}"), "model_type is None; supported: "),
    "model type": (config(model_type="gtp2"), "model_type is 'gtp2' (did you mean 'gpt2'?)"),
    "architecture": (config(architectures=["GPT2ForTokenClassification"]),
                     "architectures is 'GPT2ForTokenClassification'"),
    "setting": (config(scale_attn_by_inverse_layer_idx=True),
                "scale_attn_by_inverse_layer_idx is True; supported: False"),
    "activation": (config(activation_function="mish"), "activation_function is 'mish'"),
    "size": (config(n_embd="24"), "n_embd is '24'; it must be a positive integer"),
    "heads": (config(n_head=5), "num_heads=5 does not divide"),
    "a text": (config(layer_norm_epsilon="small"), "model.norm_epsilon must be float, but 'small'"),
    "another type": (config(activation_function=[1]), "config.json does not describe a gpt2"),
    "only bin": (only_bin, "pickles: reading one can run any code"),
    "nothing": (lambda f: (f / WEIGHTS).unlink(), f"holds neither {WEIGHTS} nor {INDEX}"),
    "empty": (cut(0), "is truncated or no safetensors file"),
    "cut in the header": (cut(100), "is truncated or no safetensors file"),
    "cut in the data": (cut(20_000), "is truncated: its header speaks of"),
    "a pickle": (text(WEIGHTS, b"\x80\x04" + b"x" * 99), "is truncated or no safetensors file"),
    "no header": (header(lambda h: b"?" * len(h)), "its header is not valid"),
    "a name twice": (header(lambda h: h.replace(b'"transformer.h.0.ln_1.bias"',
                                                b'"transformer.h.0.ln_2.bias"')),
                     "the key 'transformer.h.0.ln_2.bias' stands there twice"),
    "overlap": (header(lambda h: h.replace(b'[0,6720]', b'[8,6728]')), WEIGHTS),
    "no rule": (tensors(lambda t: t.update({"transformer.wtf.weight": np.ones(3, np.float32)})),
                "no rule of gpt2 reads 'transformer.wtf.weight'"),
    "no rule in each layer": (
        tensors(lambda t: t.update({f"h.{i}.lora": np.ones(3, np.float32) for i in range(3)})),
        "no rule of gpt2 reads 'h.*.lora' (3 tensors)"),
    "control characters": (tensors(lambda t: t.update({"a\nb\x1b[2J": np.ones(3, np.float32)})),
                           r"no rule of gpt2 reads 'a\nb\x1b[2J'"),
    "escaping name": (tensors(lambda t: t.update({"../../etc/x": np.ones(3, np.float32)})),
                      "no rule of gpt2 reads '../../etc/x'"),
    "missing": (tensors(lambda t: t.pop(LAST)), f"no file holds '{LAST}'"),
    "shape": (tensors(lambda t: t.update({FIRST: np.ones((V, 23), np.float32)})),
              f"'{FIRST}' has shape [70, 23], and config.json makes it [70, 24]"),
    "transposed": (tensors(lambda t: t.update({"transformer.h.1.mlp.c_fc.weight":
                                               np.ones((40, 24), np.float32)})),
                   "has shape [40, 24], and config.json makes it [24, 40]"),
    "integers": (tensors(lambda t: t.update({LAST: np.ones(24, np.int32)})), f"'{LAST}' is I32"),
    "tied and different": (
        tensors(lambda t: t.update({"lm_head.weight": np.ones((V, 24), np.float32)})),
        f"'lm_head.weight' differs from '{FIRST}'"),
    "given twice": (tensors(lambda t: t.update({"wte.weight": t[FIRST].copy()})),
                    "are the same tensor"),
    "no map": (index(lambda w: w.pop("weight_map")), 'has no "weight_map"'),
    "escape up": (index(put(FIRST, "../part-0.safetensors")), "which may lie outside this folder"),
    "escape by root": (index(put(FIRST, "/etc/x.safetensors")), "may lie outside this folder"),
    "escape by backslash": (index(put(FIRST, "..\\x.safetensors")), "may lie outside this folder"),
    "bin in the index": (index(put(FIRST, "part-0.bin")), "which is no .safetensors file"),
    "missing shard": (index(put(FIRST, "part-7.safetensors")),
                      "part-7.safetensors is not there, and model.safetensors.index.json puts 1"),
    "wrong shard": (index(put(FIRST, "part-1.safetensors")), "which does not hold it"),
    "tokenizer": (text("tokenizer.json", json.dumps({"model": {"vocab": {"a": V}}})),
                  f"tokenizer.json has ids up to {V}, but the embedding has {V} rows"),
    "added token": (text("tokenizer.json", json.dumps(
        {"model": {"vocab": [["a", 0.0]]}, "added_tokens": [{"id": 2**31, "content": "b"}]})),
        f"ids up to {2**31}"),
    "no tokenizer": (text("tokenizer.json", "x"), "is no tokenizer of the tokenizers library"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_one_line(case, checkpoint, tmp_path, capsys, monkeypatch):
    damage, words = CASES[case]
    folder, _, _ = checkpoint("gpt2")
    damage(folder)
    monkeypatch.setattr(place, "on_cpu", lambda *a: pytest.fail("a tensor was read"))
    with pytest.raises(UserError) as raised:
        interop.load_huggingface(folder)
    lines = [line for line in str(raised.value).split("\n") if words in line]
    assert lines and str(folder) in lines[0] and "\x1b" not in str(raised.value)
    assert cli.main(["convert", "--from", str(folder), "--to", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_all_is_told_at_once(checkpoint):
    folder, _, _ = checkpoint("gpt2")
    for case in ("no rule", "missing", "shape", "integers", "tokenizer"):
        if case != "missing":
            CASES[case][0](folder)
    tensors(lambda t: t.pop("transformer.ln_f.bias"))(folder)
    with pytest.raises(UserError) as raised:
        interop.load_huggingface(folder)
    assert len(str(raised.value).split("\n")) == 5
    many = {f"x{'y' * i}": np.ones(1, np.float32) for i in range(50)}
    tensors(lambda t: t.update(many))(folder)
    with pytest.raises(UserError, match="and 35 more such lines"):
        interop.load_huggingface(folder)


@pytest.mark.parametrize(
    "family,keys,words",
    [
        ("bert", {"position_embedding_type": "relative_key"}, "supported: 'absolute'"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, "no file holds 'classifier."),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp is 2"),
        ("llama", {"mlp_bias": True}, "mlp_bias is true and attention_bias false"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor of RoPE is None"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"num_key_value_heads": 4}, "has shape [12, 24], and config.json makes it [24"),
    ],
)
def test_settings_that_we_lack(family, keys, words, checkpoint):
    folder, _, _ = checkpoint(family)
    config(**keys)(folder)
    with pytest.raises(UserError) as raised:
        interop.load_huggingface(folder)
    assert words in str(raised.value)


def test_remote_code_is_not_run(checkpoint, tmp_path):
    """auto_map asks to import a file of the folder; nobody does."""
    folder, _, _ = checkpoint("gpt2")
    config(auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True)(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    interop.load_huggingface(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("seed", range(3))
def test_damage_at_random_is_a_line_too(seed, checkpoint, monkeypatch):
    """Bytes of config.json, of the index and of a header, changed at random: no other error."""
    folder, _, _ = checkpoint(("gpt2", "bert", "llama")[seed % 3])
    index(lambda whole: None)(folder)
    monkeypatch.setattr(huggingface, "_shapes", lambda model: pytest.skip("got that far"))
    rng = np.random.default_rng(seed)
    values = [
        b'""',
        b"-1",
        b"1e400",
        b"null",
        b"[]",
        b"{}",
        b"NaN",
        b'"a"',
        b"true",
        b"0",
        b"9" * 30,
    ]
    files = ("config.json", INDEX, "part-0.safetensors")
    for turn in range(150):
        path = folder / files[turn % 3]
        whole = path.read_bytes()
        size = (
            min(len(whole), 8 + int.from_bytes(whole[:8], "little"))
            if turn % 3 == 2
            else len(whole)
        )
        if turn % 2:  # a byte
            damaged = bytearray(whole)
            damaged[rng.integers(0, size)] = rng.integers(0, 256)
        else:  # a value, one that was a number or a text
            spans = [
                match.span()
                for match in re.finditer(rb'(?<=[:,\[] |.[:,\[])("\w*"|[-\d.e]+)', whole[:size])
            ]
            start, stop = spans[rng.integers(0, len(spans))]
            value = values[rng.integers(0, len(values))]
            damaged = bytearray(whole[:start] + value + whole[stop:])
        path.write_bytes(damaged)
        with contextlib.suppress(UserError, pytest.skip.Exception):
            interop.load_huggingface(folder)
        path.write_bytes(whole)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        interop.load_huggingface(tmp_path / "gpt2")
    with pytest.raises(UserError, match="dtype 'int8' is not one of"):
        interop.load_huggingface(tmp_path, dtype="int8")


def test_nothing_is_overwritten(checkpoint, tmp_path, monkeypatch):
    folder, model, params = checkpoint("gpt2")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="is there already; nothing is overwritten"):
        interop.save_huggingface(folder, model, params)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is there already"):
        interop.save_huggingface(tmp_path / "file", model, params)
    with pytest.raises(UserError, match="is not a folder one can write to"):
        interop.save_huggingface(tmp_path / "file" / "new", model, params)
    (tmp_path / "empty").mkdir()
    interop.save_huggingface(tmp_path / "empty", model, params)
    interop.load_huggingface(tmp_path / "empty")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface.writer, "write_tensors", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        interop.save_huggingface(tmp_path / "deep" / "new", model, params)
    assert not list(tmp_path.glob("**/*.tmp")) and not (tmp_path / "deep" / "new").exists()


@pytest.mark.parametrize(
    "module,keys,words",
    [
        (decoder, {"positions": "alibi"}, "positions='alibi'"),
        (decoder, {"qk_norm": True, "short_conv": 3}, "short_conv=3"),
        (decoder, {"activation": "relu2", "parallel_residual": True}, "parallel_residual=True"),
        (encoder, {"num_token_types": 2, "pooling": "mean", "num_classes": 2}, "pooling='mean'"),
    ],
)
def test_a_model_that_nobody_published_is_not_written(module, keys, words, tmp_path):
    """It would compute something else there: the option that has no counterpart is named."""
    model = module.make(module.Config(vocab_size=V, width=24, num_layers=1, num_heads=2, **keys))
    with pytest.raises(UserError) as raised:
        interop.save_huggingface(tmp_path / "out", model, random_params(model))
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_model_are_not_written(tmp_path):
    params = random_params(make_model("gpt2", num_layers=2))
    with pytest.raises(UserError, match="these are not the parameters of this model"):
        interop.save_huggingface(tmp_path / "out", make_model("gpt2"), params)
    with pytest.raises(UserError, match="model_type 'gtp2' is not one of"):
        interop.save_huggingface(tmp_path / "x", make_model("gpt2"), params, model_type="gtp2")
