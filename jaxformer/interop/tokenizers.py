"""The tokenizer beside a checkpoint's weights: whether it fits them, and taking it along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer.data import tokenizers
from jaxformer.errors import UserError

# Files that a checkpoint's tokenizer may consist of, and what its text generation is set to.
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "*.model", "source.spm", "target.spm",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip

_ROLES = {name for names in tokenizers.NAMES.values() for name in names}


def files(directory: Path) -> Iterator[Path]:
    """Yields the tokenizer files of a folder."""
    for pattern in FILES:
        yield from sorted(path for path in directory.glob(pattern) if path.is_file())


def check_tokenizer(path: Path, config: Any) -> None:
    """Raises UserError if a tokenizer.json has ids that the model's embedding has no row for, or
    an id that is two tokens'.

    A special token that no text can become may lie beyond: Gemma 3's for images does.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = json.loads(text)
        highest = _highest_id(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path.name} is no tokenizer of the tokenizers library: {error}") from None
    if highest >= config.vocab_size:
        raise UserError(
            f"{path.name} has ids up to {highest}, but the embedding has {config.vocab_size} rows "
            "(vocab_size); this tokenizer belongs to another model"
        )


def _highest_id(content: dict[str, Any]) -> int:
    if "jaxformer" in content:  # our own, of bytes or characters
        return tokenizers.parse(json.dumps(content), "tokenizer.json").vocab_size - 1
    vocabulary = content.get("model", {}).get("vocab", {})
    if not isinstance(vocabulary, dict):  # a list of (piece, score), or piece -> id
        vocabulary = {piece[0]: index for index, piece in enumerate(vocabulary)}
    added = content.get("added_tokens") or []
    owners: dict[int, str] = {}
    named = [*vocabulary.items(), *((token["content"], token["id"]) for token in added)]
    for token, index in named:
        owner = owners.setdefault(int(index), token)
        if owner != token:
            raise UserError(f"tokenizer.json: {owner!r} and {token!r} both have id {index}")
    around = json.dumps(content.get("post_processor"))
    unread = {token["id"] for token in added
              if token.get("special") and token["content"] not in {*vocabulary, *_ROLES}
              and json.dumps(token["content"]) not in around}  # fmt: skip
    return max(owners.keys() - unread, default=-1)


def problems(directory: Path, config: Any) -> list[str]:
    """Returns what is wrong with the tokenizer in a checkpoint's folder, if there is one."""
    path = directory / "tokenizer.json"
    try:
        if path.exists():
            check_tokenizer(path, config)
    except (UserError, OSError) as problem:
        return [str(problem)]
    return []


def write(directory: Path, tokenizer: Any, max_length: int) -> None:
    """Writes a tokenizer into a folder: a folder's files as they are, or a data.Tokenizer.

    Ours of bytes and characters have no counterpart, and are written for ourselves alone.
    """
    if tokenizer is None:
        return
    if isinstance(tokenizer, (str, Path)):
        for path in files(Path(tokenizer)):
            shutil.copyfile(path, directory / path.name)
        return
    tokenizer.save(directory)
    if hasattr(tokenizer, "library"):
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
        (directory / "tokenizer_config.json").write_text(
            json.dumps({**settings, **_special_tokens(tokenizer)}, indent=2) + "\n",
            encoding="utf-8",
        )


def token_ids(tokenizer: Any) -> dict[str, int]:
    """Returns config.json's keys for the special tokens that a data.Tokenizer has."""
    roles = ("bos", "eos", "pad")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in roles}
    return {key: index for key, index in ids.items() if index >= 0}


def _special_tokens(tokenizer: Any) -> dict[str, str]:
    names = {index: name for name, index in tokenizer.specials.items()}
    roles = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
    return {
        f"{role}_token": names[index]
        for role in roles
        if (index := getattr(tokenizer, f"{role}_id")) >= 0
    }
