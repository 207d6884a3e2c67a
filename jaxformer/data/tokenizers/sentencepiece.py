"""SentencePiece models (Kudo and Richardson 2018) as tokenizers of the tokenizers library.

The file is a protocol buffer; the few fields that matter are read here, so that no other package
is needed. Only unigram models: those of BPE come with a tokenizer.json.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxformer.errors import UserError

UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # kinds of pieces
ABSENT = -20.0  # added to the lowest score, for tokens of Marian's vocab.json that are no piece


class Pieces(NamedTuple):
    """What a model's file says.

    Attributes:
      pieces: (text, log probability, kind), in the order of ids.
      charsmap: the compiled normalisation, empty for none.
      dummy_prefix: whether a text begins with a blank.
      squeeze: whether several blanks become one.
    """

    pieces: list[tuple[str, float, int]]
    charsmap: bytes
    dummy_prefix: bool
    squeeze: bool


def convert(
    data: bytes, name: str, settings: dict[str, Any], ids: dict[str, int] | None = None
) -> Any:
    """Returns a tokenizers.Tokenizer.

    Args:
      data: the file's content.
      name: the file, for messages.
      settings: of tokenizer_config.json: do_lower_case and keep_accents (ALBERT, XLNet).
      ids: Marian's vocab.json, whose numbers stand for the pieces.

    Raises:
      UserError: not a SentencePiece model, or not a unigram one.
    """
    import tokenizers as library

    model = parse(data, name)
    names = {piece for piece, _, _ in model.pieces}
    albert, xlnet = {"[CLS]", "[SEP]"} <= names, {"<cls>", "<sep>"} <= names
    scored = [(piece, score) for piece, score, _ in model.pieces]
    if albert or xlnet:  # their own code splits "1," and "12," apart
        scored = [(p, s - 100 * (p[-1:] == "," and p[-2:-1].isdigit())) for p, s in scored]
    unknown = next((i for i, piece in enumerate(model.pieces) if piece[2] == UNKNOWN), None)
    if ids is not None:
        scored, unknown = _renumbered(scored, ids, name)
    result = library.Tokenizer(library.models.Unigram(scored, unknown))
    result.normalizer = _normalizer(model, settings, albert, albert or xlnet)
    scheme = "always" if model.dummy_prefix else "never"
    result.pre_tokenizer = library.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    result.decoder = library.decoders.Metaspace(prepend_scheme=scheme)
    add = library.AddedToken
    for piece, _, kind in model.pieces:
        if kind in (UNKNOWN, CONTROL) and (ids is None or piece in ids):
            result.add_special_tokens([add(piece, normalized=False)])
        elif kind == USER_DEFINED:
            result.add_tokens([add(piece, normalized=False)])
    codes = [token for token in ids or () if token.startswith(">>") and token.endswith("<<")]
    result.add_tokens([add(code, normalized=False) for code in codes])  # target languages
    for needed, single, pair in (
        (("[CLS]", "[SEP]"), "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"),
        (("<cls>", "<sep>"), "$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2"),
        (("</s>",), "$A </s>", "$A </s> $B </s>" if ids is None else "$A $B </s>"),
    ):
        # T5 and Marian have an end but no beginning; models with both put them in several ways.
        if set(needed) <= names and ("<s>" not in names or ids is not None or len(needed) == 2):
            numbers = [(token, result.token_to_id(token)) for token in needed]
            result.post_processor = library.processors.TemplateProcessing(
                single=single, pair=pair, special_tokens=numbers
            )
            break
    return result


def _normalizer(model: Pieces, settings: dict[str, Any], lower: bool, strip: bool) -> Any:
    """SentencePiece's own normalisation, after ALBERT's and XLNet's, who also `strip` accents."""
    import tokenizers as library

    steps: list[Any] = []
    if strip:
        steps += [library.normalizers.Replace("``", '"'), library.normalizers.Replace("''", '"')]
        if not settings.get("keep_accents", False):
            steps += [library.normalizers.NFKD(), library.normalizers.StripAccents()]
        if settings.get("do_lower_case", lower):
            steps.append(library.normalizers.Lowercase())
    if model.charsmap:
        steps.append(library.normalizers.Precompiled(model.charsmap))
    if model.squeeze:
        steps.append(library.normalizers.Strip(left=True, right=True))
        steps.append(library.normalizers.Replace(library.Regex(" {2,}"), " "))
    return library.normalizers.Sequence(steps)


def _renumbered(
    scored: list[tuple[str, float]], ids: dict[str, int], name: str
) -> tuple[list[tuple[str, float]], int]:
    """Gives Marian's pieces the numbers of its vocab.json, which also has the other language's."""
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))) or "<unk>" not in ids:
        raise UserError(f"{name}: its vocab.json must number its tokens from 0, <unk> among them")
    known = dict(scored)
    low = min(known.values()) + ABSENT
    return [(token, known.get(token, low)) for token in tokens], ids["<unk>"]


def parse(data: bytes, name: str) -> Pieces:
    """Reads a model's file; `name` is for messages.

    Raises:
      UserError: not a SentencePiece model, or not a unigram one.
    """
    pieces: list[tuple[str, float, int]] = []
    kind, normalisation = UNIGRAM, {}
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                pieces.append((piece[1].decode("utf-8"), score, piece.get(3, 1)))
            elif field == 2:
                kind = dict(_fields(value)).get(3, UNIGRAM)
            elif field == 3:
                normalisation = dict(_fields(value))
        if not pieces:
            raise ValueError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        raise UserError(f"{name} is not a SentencePiece model, or is damaged") from None
    if kind != UNIGRAM:
        what = "BPE" if kind == BPE else "word or character"
        raise UserError(
            f"{name} is a {what} model of SentencePiece, and only unigram models can be read; "
            "give the model's tokenizer.json"
        )
    return Pieces(
        pieces,
        normalisation.get(2, b""),
        bool(normalisation.get(3, True)),
        bool(normalisation.get(4, True)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of a message's fields: an int, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError("not a protocol buffer")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("not a protocol buffer")
