"""Commands on a model, of a run or of a published folder: generate, embed, perplexity, convert."""

from __future__ import annotations

import time
from pathlib import Path

from jaxformer.cli import retrieval
from jaxformer.cli.flags import MODEL, load, parse, required, start_jax
from jaxformer.errors import UserError

_NEIGHBOURS = ("--datastore", "--neighbours", "--lambdas", "--temperature", "--max_tokens",
               "--search")  # fmt: skip


def generate(words: list[str]) -> None:
    """Prints what the model makes of each prompt."""
    flags, assignments = parse(
        words, *MODEL, "--prompt", "--retrieve", "--top", "--template", "--encoder"
    )
    if flags["from"]:
        required(flags, "prompt", "generate", "TEXT --from DIR")
    if flags["retrieve"]:
        retrieval.generate(flags, assignments)
        return
    for name in ("top", "template", "encoder"):
        if flags[name]:
            raise UserError(f"--{name} is of an index; give --retrieve too, see jaxformer index")
    loaded = load(flags, assignments, "generate")
    from jaxformer.train.sample import Speaker

    speaker = Speaker.of(loaded)
    prompts = tuple(flags["prompt"] or speaker.config.prompts)
    show = len(prompts) == 1
    between = "" if speaker.model.encode is None else "\n"  # a translation does not go on
    begun = False

    def stream(row: int, text: str) -> None:
        nonlocal begun
        if not show:
            return
        # Only now: a prompt that cannot be used is told in one line alone.
        print(text if begun else f"{prompts[0]}{between}{text}", end="", flush=True)
        begun = True

    texts = speaker.write(loaded.params, prompts, stream=stream)
    if show:
        print("" if begun else f"{prompts[0]}{between}{texts[0]}")
    else:
        for prompt, text in zip(prompts, texts, strict=True):
            print(f"--- {prompt!r}\n{prompt}{between}{text}\n")


def embed(words: list[str]) -> None:
    """Writes one vector for each line of a text file."""
    flags, assignments = parse(
        words, *MODEL, "--text", "--out", "--pooling", "--normalize", "--max_length", "--batch_size"
    )
    text = Path(required(flags, "text", "embed", "FILE --out FILE.npy --from DIR"))
    out = Path(required(flags, "out", "embed", "FILE.npy --text FILE --from DIR"))
    from jaxformer.evaluate import embed as embedding

    embedding.check_files(text, out)
    loaded = load(flags, assignments, "embed")
    start = time.perf_counter()
    count, width = embedding.embed_file(
        loaded.model, loaded.params, loaded.tokenizer, text, out,
        pooling=flags["pooling"] or "mean", normalise=flags["normalize"],
        max_length=flags["max_length"], batch_size=flags["batch_size"] or 32,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(
        f"{out}: {count:,} sentences, float32 [{count}, {width}], in {seconds:.1f} s, "
        f"{count / seconds:,.0f} sentences/s"
    )


def perplexity(words: list[str]) -> None:
    """Prints how well the model predicts a text file."""
    flags, assignments = parse(
        words, *MODEL, "--text", "--stride", "--max_length", "--batch_size", *_NEIGHBOURS
    )
    if flags["datastore"]:
        retrieval.perplexity(flags, assignments)
        return
    for name in _NEIGHBOURS[1:]:
        if flags[name[2:]]:
            raise UserError(f"{name} is of kNN-LM; give --datastore too, see jaxformer datastore")
    path = Path(required(flags, "text", "perplexity", "FILE --from DIR"))
    from jaxformer.evaluate import likelihood

    text = likelihood.read_text(path)
    loaded = load(flags, assignments, "perplexity")
    start = time.perf_counter()
    found = likelihood.perplexity(
        loaded.model, loaded.params, loaded.tokenizer, text, flags["stride"],
        max_length=flags["max_length"], batch_size=flags["batch_size"] or 8,
    )  # fmt: skip
    print(f"{path}, in {time.perf_counter() - start:.1f} s")
    for name, value in found.items():
        counted = name in ("tokens", "words", "bytes", "unknown")
        print(f"  {name:<16} {f'{value:,.0f}' if counted else f'{value:.4f}'}")


def convert(words: list[str]) -> None:
    """Writes a published checkpoint, or a run, as a folder that transformers loads."""
    flags, changes = parse(words, "--from", "--to", "--checkpoint", "--require_platform")
    if changes:
        raise UserError(f"convert changes no key; leave out --config.{changes[0]}")
    source = Path(required(flags, "from", "convert", "DIR --to NEW"))
    target = Path(required(flags, "to", "convert", "NEW --from DIR"))
    start = time.perf_counter()
    from jaxformer import interop

    interop.refuse_existing(target)
    if not (source / "checkpoints").is_dir():
        start_jax(flags["require_platform"])
        from jaxformer.interop import finite

        interop.published_config(source)  # what kind of folder it is comes first
        finite.refuse(source)
        interop.convert(source, target)
        return
    run = load({**flags, "from": None, "workdir": str(source), "config": None}, [], "convert")
    interop.export(
        target, run.model, run.params, run.tokenizer, start=start, class_names=run.data.class_names
    )
