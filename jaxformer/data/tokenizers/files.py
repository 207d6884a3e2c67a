"""Finds a tokenizer's files, and makes one from those that came before `tokenizer.json`.

| files | what |
|---|---|
| tokenizer.json | the tokenizers library's own, or ours |
| vocab.txt | WordPiece (BERT, ELECTRA, DistilBERT); `do_lower_case` of tokenizer_config.json |
| vocab.json, merges.txt | byte-level BPE (GPT-2, RoBERTa, BART), or words that end in </w> (GPT) |
| spiece.model, *.model | SentencePiece unigram (T5, ALBERT, XLNet) |
| source.spm, vocab.json | SentencePiece unigram (Marian); its target.spm is not read |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxformer.data.tokenizers import sentencepiece
from jaxformer.data.tokenizers.base import NAMES, Tokenizer
from jaxformer.data.tokenizers.library import parse
from jaxformer.errors import UserError

PIECES = ("source.spm", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
SETTINGS = "tokenizer_config.json"


def locate(path: Path) -> tuple[Path, ...]:
    """Returns the files that a tokenizer is made of, the one that decides its kind first; where
    there are none, the tokenizer.json (or the file) that is missed.

    Args:
      path: a file, or the folder of a run or of a published model.
    """
    if path.is_dir():
        known = ("tokenizer.json", "vocab.txt", *PIECES)
        first = next((path / name for name in known if (path / name).is_file()), None)
        if first is None and (path / "merges.txt").is_file():
            first = path / "vocab.json"
        models = sorted(path.glob("*.model"))
        first = first or (models[0] if len(models) == 1 else path / "tokenizer.json")
    else:
        first = path
    beside = {"vocab.json": ("merges.txt", SETTINGS), "source.spm": ("vocab.json", SETTINGS)}
    plain = first.suffix in (".txt", ".model", ".spm")
    names = beside.get(first.name, (SETTINGS,) if plain else ())
    return first, *(first.parent / name for name in names if (first.parent / name).is_file())


def load(path: str | Path) -> Tokenizer:
    """Reads a tokenizer: ours, any `tokenizer.json`, or the files of the table above.

    Args:
      path: the file, or a folder (a run's workdir, a published model's folder) that holds it.

    Raises:
      UserError: no such file, not a tokenizer, or ids that are doubled.
    """
    file = locate(Path(path))[0]
    try:
        make = _maker(file)
        if make is None:
            return parse(_text(file), str(file))
        library = make(file, _settings(file.parent / SETTINGS))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"cannot read the tokenizer {file}: {reason}") from None
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exception, a damaged file several kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} is not a tokenizer's vocabulary: {reason}") from None
    return parse(library.to_str(), str(file))


def _maker(file: Path) -> Callable[[Path, dict[str, Any]], Any] | None:
    if file.name == "vocab.json":
        return _bpe
    return {".txt": _wordpiece, ".model": _pieces, ".spm": _pieces}.get(file.suffix)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _settings(file: Path) -> dict[str, Any]:
    return json.loads(_text(file)) if file.is_file() else {}


def _wordpiece(file: Path, settings: dict[str, Any]) -> Any:
    """BERT's: lower-cased unless tokenizer_config.json says otherwise (as its own loader does)."""
    import tokenizers as library

    words = [line.rstrip("\r\n") for line in _text(file).split("\n")]
    words = words[:-1] if words and not words[-1] else words
    if len(set(words)) < len(words):
        double = next(word for i, word in enumerate(words) if word in words[:i])
        raise UserError(f"{file}: the token {double!r} stands in two lines")
    vocabulary = {word: index for index, word in enumerate(words)}
    model = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.normalizer = library.normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    model.decoder = library.decoders.WordPiece()
    _add_specials(model, settings)
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        sep, cls = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
        model.post_processor = library.processors.BertProcessing(sep, cls)
    return model


def _bpe(file: Path, settings: dict[str, Any]) -> Any:
    import tokenizers as library

    merges = file.parent / "merges.txt"
    if not merges.is_file():
        raise UserError(f"{file} needs a merges.txt beside it")
    vocabulary = json.loads(_text(file))
    if any(token.endswith("</w>") for token in vocabulary):
        unknown = "<unk>" if "<unk>" in vocabulary else None
        model = library.Tokenizer(
            library.models.BPE.from_file(
                str(file), str(merges), unk_token=unknown, end_of_word_suffix="</w>"
            )
        )
        model.normalizer = library.normalizers.BertNormalizer(lowercase=True)
        model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        model.decoder = library.decoders.BPEDecoder(suffix="</w>")
        _add_specials(model, settings)
        return model
    blank = settings.get("add_prefix_space", False)
    model = library.Tokenizer(library.models.BPE.from_file(str(file), str(merges)))
    model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=blank)
    model.decoder = library.decoders.ByteLevel()
    _add_specials(model, settings)
    if "<s>" in vocabulary and "</s>" in vocabulary:  # RoBERTa's and BART's
        sep, cls = (("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]))
        model.post_processor = library.processors.RobertaProcessing(sep, cls, True, blank)
    return model


def _pieces(file: Path, settings: dict[str, Any]) -> Any:
    ids = file.parent / "vocab.json"
    marian = file.suffix == ".spm" and ids.is_file()
    model = sentencepiece.convert(
        file.read_bytes(), str(file), settings, json.loads(_text(ids)) if marian else None
    )
    _add_specials(model, settings)
    return model


def _add_specials(model: Any, settings: dict[str, Any]) -> None:
    """Names the vocabulary's special tokens, then adds those that tokenizer_config.json has."""
    import tokenizers as library

    vocabulary = model.get_vocab()
    roles = [f"{role}_token" for role in NAMES]
    named = [settings[role] for role in roles if settings.get(role)]
    names = [token["content"] if isinstance(token, dict) else token for token in named]
    names += [name for usual in NAMES.values() for name in usual]
    found = {name: vocabulary[name] for name in names if name in vocabulary}
    model.add_special_tokens(sorted(found, key=found.__getitem__))
    added = settings.get("added_tokens_decoder", {})
    for index in sorted(added, key=int):
        flags = {k: v for k, v in added[index].items() if k != "content"}
        token = library.AddedToken(added[index]["content"], **flags)
        (model.add_special_tokens if flags.get("special") else model.add_tokens)([token])
    wanted = settings.get("extra_ids", 0) if "<extra_id_0>" not in model.get_vocab() else 0
    model.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(wanted))])
