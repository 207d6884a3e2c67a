"""A model to be used as it is, with its tokenizer: that of a run, or of a published folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxformer import config, data, generate, interop, models
from jaxformer.errors import UserError
from jaxformer.interop import finite, reader
from jaxformer.models import Model
from jaxformer.train import overrides
from jaxformer.train.experiment import build

# What a published folder may be asked to change; the rest of a config is about training.
SECTIONS = ("model", "generate", "data")


class Loaded(NamedTuple):
    """A model, its parameters and its tokenizer, and how it writes.

    generate: how texts are drawn. data: how the text of a source is laid out. prefix: the ids that
    stand before a prompt. suppress: ids that are never written. first: the id that every text that
    is written begins with, or -1.
    """

    model: Model
    params: Any
    tokenizer: data.Tokenizer
    generate: generate.Config
    data: data.Config
    prefix: tuple[int, ...] = ()
    suppress: tuple[int, ...] = ()
    first: int = -1


def of_run(chosen: ConfigDict, params: Any, workdir: Path) -> Loaded:
    """Returns a run's model.

    Args:
      chosen: the run's config, as it was saved.
      params: its parameters.
      workdir: holds its tokenizer.
    """
    experiment = build(chosen)
    model = models.make(experiment.model)
    tokenizer = data.load_tokenizer(workdir)
    _refuse_too_large(tokenizer, model.config, workdir)
    return Loaded(model, params, tokenizer, experiment.generate, experiment.data)


def of_folder(folder: Path, assignments: list[str]) -> Loaded:
    """Returns a published checkpoint's model: config.json, safetensors and a tokenizer.

    A prompt begins as the tokenizer's file says (Llama's and Gemma's with BOS). Texts are written
    as generation_config.json says, which older folders have in config.json; greedily, where it
    says nothing of drawing.

    Args:
      folder: holds it.
      assignments: changes such as "generate.num_beams=4" or "model.compute_dtype=bfloat16".

    Raises:
      UserError: something of it is missing, damaged, or belongs to another model.
    """
    family, published = interop.published_config(folder)
    for assignment in assignments:
        if assignment.partition(".")[0] not in SECTIONS:
            raise UserError(
                f"--config.{assignment}: {folder} is a published checkpoint, of which "
                f"{', '.join(SECTIONS)} can be changed"
            )
    chosen = overrides.apply(ConfigDict({"model": {"family": family}}), assignments)
    changes = {key: value for key, value in chosen.model.items() if key != "family"}
    writes, suppress, first = writing(folder, family, dict(chosen.get("generate", {})))
    start = {"start_id": getattr(published, "start_id", -1)}
    reads = config.build(data.Config, {**start, **dict(chosen.get("data", {}))}, "data")
    tokenizer = data.load_tokenizer(folder)
    _refuse_too_large(tokenizer, published, folder)
    finite.refuse(folder)
    model, params = interop.load_huggingface(folder, **changes)
    template = tokenizer.templates[0] if tokenizer.templates else None
    prefix = template.prefix if template else ()
    return Loaded(model, params, tokenizer, writes, reads, prefix, suppress, first)


def _refuse_too_large(tokenizer: data.Tokenizer, model: Any, folder: Path) -> None:
    rows = getattr(model, "source_vocab_size", 0) or model.vocab_size
    if tokenizer.num_rows > rows:
        raise UserError(
            f"{folder}: its tokenizer has ids up to {tokenizer.num_rows - 1}, but the embedding "
            f"has {rows} rows (vocab_size); this tokenizer belongs to another model"
        )


_SEARCH = {
    "num_beams": "num_beams", "length_penalty": "length_penalty",
    "early_stopping": "early_stopping", "no_repeat_ngram_size": "no_repeat_ngram",
    "min_new_tokens": "min_new_tokens", "max_new_tokens": "max_new_tokens",
}  # fmt: skip
_DRAW = {name: name for name in ("temperature", "top_k", "top_p", "min_p")}


def writing(
    folder: Path, family: str, asked: dict[str, Any]
) -> tuple[generate.Config, tuple[int, ...], int]:
    """Returns how a published model writes, the ids that it never writes, and its first id or -1.

    Args:
      folder: its config.json and generation_config.json say so.
      family: our model's.
      asked: keys of generate.Config that go before what the files say.
    """
    said: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            try:
                said |= reader.read_json(folder / name)
            except reader.BrokenError as problem:
                raise UserError(f"{folder}: {problem}") from None
    names = {**_SEARCH, **(_DRAW if said.get("do_sample") else {})}
    keys: dict[str, Any] = {"stop": _ids(said.get("eos_token_id"))}
    if not said.get("do_sample"):
        keys["temperature"] = 0.0
    if family == "encoder_decoder":  # there the start token counts as one
        ends = (("min_length", "min_new_tokens"), ("max_length", "max_new_tokens"))
        keys |= {ours: said[theirs] - 1 for theirs, ours in ends
                 if isinstance(said.get(theirs), int) and said[theirs] > 1}  # fmt: skip
    for theirs, ours in names.items():
        # early_stopping="never" goes on even longer; we have no such search.
        if said.get(theirs) is not None and not isinstance(said[theirs], str):
            keys[ours] = said[theirs]
    never = [ids[0] for ids in map(_ids, said.get("bad_words_ids") or ()) if len(ids) == 1]
    first = (*_ids(said.get("forced_bos_token_id")), -1)[0]
    if "temperature" in asked and "num_beams" not in asked:
        keys.pop("num_beams", None)  # beams do not draw: the user's word would have no effect
    writes = config.build(generate.Config, {**keys, **asked}, "generate")
    return writes, (*never, *_ids(said.get("suppress_tokens"))), first


def _ids(value: Any) -> tuple[int, ...]:
    """Returns an id, or a list of them, as a tuple."""
    listed = value if isinstance(value, list) else [value]
    return tuple(index for index in listed if isinstance(index, int))
