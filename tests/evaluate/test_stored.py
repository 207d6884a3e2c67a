"""A folder of arrays is there whole or not at all, and holds what was appended."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.evaluate import stored

RNG = np.random.default_rng(0)


def make(out, parts):
    with stored.creating(out, "numbers") as writer:
        for part in parts:
            writer.append("x", part)
            writer.append("rows", np.arange(len(part), dtype=np.int64))
            assert not out.exists()
        writer.meta = {"known": [1, "ä"]}


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "uint8"])
def test_what_was_appended_is_there(tmp_path, dtype):
    parts = [RNG.integers(0, 99, (n, 3, 2)).astype(dtype) for n in (5, 0, 1, 1000)]
    make(tmp_path / "a", parts)
    folder, arrays, meta = stored.open_folder(tmp_path / "a", "numbers", "make")
    assert folder == tmp_path / "a" and meta["known"] == [1, "ä"]
    np.testing.assert_array_equal(arrays["x"], np.concatenate(parts))
    np.testing.assert_array_equal(np.load(tmp_path / "a" / "x.npy"), np.concatenate(parts))
    assert isinstance(arrays["x"], np.memmap) and not arrays["x"].flags.writeable
    assert arrays["rows"].shape == (1006,)


def test_damage_anywhere_is_seen(tmp_path):
    """Of an array of several blocks; one of more than CHECKED is verified in part."""
    make(tmp_path / "a", [RNG.integers(0, 255, 3 * stored.BLOCK).astype(np.uint8)])
    whole = (tmp_path / "a" / "x.npy").read_bytes()
    for place in (3, 200, stored.BLOCK, 2 * stored.BLOCK + 77, len(whole) - 1):
        data = bytearray(whole)
        data[place] ^= 4
        (tmp_path / "a" / "x.npy").write_bytes(data)
        with pytest.raises(UserError, match=r"x\.npy is not as it was written.*jaxformer make"):
            stored.open_folder(tmp_path / "a", "numbers", "make")
    (tmp_path / "a" / "x.npy").write_bytes(whole)
    stored.open_folder(tmp_path / "a", "numbers", "make")


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), stored.creating(tmp_path / "a", "numbers") as writer:
        writer.append("x", np.ones(3))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    for make_one in (lambda at: at.mkdir(), lambda at: at.write_text("mine"),
                     lambda at: at.symlink_to(tmp_path / "nowhere")):  # fmt: skip
        make_one(tmp_path / "a")
        with pytest.raises(UserError, match="is there already"):
            make(tmp_path / "a", [np.ones(3)])
        (tmp_path / "a").rmdir() if (tmp_path / "a").is_dir() else (tmp_path / "a").unlink()
    # Nor what came there meanwhile.
    with pytest.raises(UserError, match="is there already"):
        with stored.creating(tmp_path / "a", "numbers") as writer:
            writer.append("x", np.ones(3))
            make(tmp_path / "other", [np.zeros(2)])
            shutil.copytree(tmp_path / "other", tmp_path / "a")
    assert stored.open_folder(tmp_path / "a", "numbers", "make").arrays["x"].tolist() == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "other"]


def test_another_kind_is_named(tmp_path):
    make(tmp_path / "a", [np.ones(2)])
    with pytest.raises(UserError, match="holds numbers of format 1, but words of format 1"):
        stored.open_folder(tmp_path / "a", "words", "make")
