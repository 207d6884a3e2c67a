"""Commands with a memory on disk: kNN-LM's datastore, and passages that questions find."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer.cli.flags import MODEL, load, numbers, parse, required, restore
from jaxformer.errors import UserError

if TYPE_CHECKING:
    from jaxformer.evaluate.passages import Found, Index
    from jaxformer.train.load import Loaded


def datastore(words: list[str]) -> None:
    """Writes what the model makes of a text, token by token, with the token that follows."""
    flags, assignments = parse(
        words, *MODEL, "--text", "--out", "--max_tokens", "--dtype", "--stride", "--max_length",
        "--batch_size",
    )  # fmt: skip
    out = Path(required(flags, "out", "datastore", "DIR --workdir runs/x"))
    from jaxformer.evaluate import datastore as store
    from jaxformer.evaluate import stored

    stored.refuse(out)
    loaded, ids, where = _model_and_text(flags, assignments, "datastore", "train")
    start = time.perf_counter()
    count = store.build(
        out, loaded.model, loaded.params, loaded.tokenizer, ids,
        dtype=flags["dtype"] or "float16", **_reading(flags),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    width, size = loaded.model.config.width, sum(f.stat().st_size for f in out.iterdir())
    print(
        f"{out}: {count:,} keys of width {width} from {where}, {size / 2**20:,.1f} MiB, in "
        f"{seconds:.1f} s"
    )


def perplexity(flags: dict[str, Any], assignments: list[str]) -> None:
    """Prints how well the model predicts a text with its nearest neighbours in a datastore."""
    lambdas, temperatures = (numbers(flags, name) for name in ("lambdas", "temperature"))
    loaded, ids, where = _model_and_text(flags, assignments, "perplexity", "validation")
    from jaxformer.evaluate import datastore as store
    from jaxformer.evaluate import knn_lm, nearest_faiss

    of_model = loaded.model, loaded.params, loaded.tokenizer
    opened = store.open_datastore(flags["datastore"], *of_model)
    search = store.search
    if flags["search"] not in (None, "exact"):
        search = nearest_faiss.searcher(opened, flags["search"])
    start = time.perf_counter()
    found = knn_lm.sweep(
        opened, *of_model, ids, neighbours=flags["neighbours"] or 64,
        lambdas=lambdas or knn_lm.LAMBDAS, temperatures=temperatures, search=search,
        **_reading(flags),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(f"{where} with {len(opened.values_N):,} keys of {flags['datastore']}, in {seconds:.1f} s")
    print("\n".join(knn_lm.table(found)))


def index(words: list[str]) -> None:
    """Writes the passages of a folder of text with their vectors."""
    flags, assignments = parse(
        words, *MODEL, "--text", "--out", "--words", "--overlap", "--pooling", "--max_length",
        "--batch_size",
    )  # fmt: skip
    text = Path(required(flags, "text", "index", "FOLDER --out DIR --from ENCODER"))
    out = Path(required(flags, "out", "index", "DIR --text FOLDER --from ENCODER"))
    from jaxformer.evaluate import passages, stored

    stored.refuse(out)
    loaded = load(flags, assignments, "index")
    names = ("from", "workdir", "checkpoint")
    encoder = {name: flags[name] for name in names if flags[name]}
    where = "from" if flags["from"] else "workdir"
    encoder[where] = str(Path(encoder[where]).resolve())
    start = time.perf_counter()
    made = passages.build(
        out, loaded.model, loaded.params, loaded.tokenizer, text, encoder=encoder,
        words=flags["words"] or 100, overlap=_overlap(flags),
        pooling=flags["pooling"] or "mean", max_length=flags["max_length"],
        batch_size=flags["batch_size"] or 32,
    )  # fmt: skip
    skipped = f" ({made.skipped:,} skipped: not UTF-8 text)" if made.skipped else ""
    print(
        f"{out}: {made.passages:,} passages of {made.files:,} files{skipped}, in "
        f"{time.perf_counter() - start:.1f} s"
    )


def generate(flags: dict[str, Any], assignments: list[str]) -> None:
    """Prints what the model makes of each prompt after the passages that it finds."""
    from jaxformer.evaluate import passages

    template = (flags["template"] or passages.TEMPLATE).replace("\\n", "\n")
    passages.check_template(template)
    opened = passages.open_index(flags["retrieve"])
    loaded = load(flags, assignments, "generate")
    from jaxformer.train.sample import Speaker

    speaker = Speaker.of(loaded)
    questions = tuple(flags["prompt"] or speaker.config.prompts)
    found = _find(flags, opened, questions)
    filled = [
        passages.fill(template, question, of_question, speaker.fits)
        for question, of_question in zip(questions, found)
    ]
    texts = speaker.write(loaded.params, [prompt for prompt, _ in filled])
    between = "" if speaker.model.encode is None else "\n"
    for number, (question, text, (_, used)) in enumerate(zip(questions, texts, filled)):
        above = "\n" if number else ""
        print(f"{above}{question}{between}{text}\n")
        for passage in used:
            print(f"  {passage.file}:{passage.line}  {passage.score:.3f}")
        if not used:
            print(f"  no passage of {flags['retrieve']} fits into the model's length")


def _find(flags: dict[str, Any], opened: Index, questions: tuple[str, ...]) -> list[list[Found]]:
    """Returns the passages that each question finds, by the encoder that made the index."""
    from jaxformer.evaluate import passages

    encoder = opened.meta["encoder"]
    if flags["encoder"]:
        run = (Path(flags["encoder"]) / "checkpoints").is_dir()
        encoder = {"workdir" if run else "from": flags["encoder"]}
    nothing = dict.fromkeys(("from", "workdir", "config", "checkpoint", "require_platform"))
    try:
        loaded = load({**nothing, **encoder}, [], "generate")
    except UserError as error:
        raise UserError(
            f"--retrieve={flags['retrieve']}: its encoder cannot be loaded ({error}); give "
            "--encoder, the folder where it is now"
        ) from None
    return passages.retrieve(
        flags["retrieve"], opened, loaded.model, loaded.params, loaded.tokenizer, questions,
        flags["top"] or 3,
    )  # fmt: skip


def _overlap(flags: dict[str, Any]) -> int:
    text = flags["overlap"]
    if text is None:
        return (flags["words"] or 100) // 5
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--overlap={text}: give a whole number from 0 on")
    return int(text)


def _reading(flags: dict[str, Any]) -> dict[str, int]:
    names = ("stride", "max_length", "max_tokens")
    return {"batch_size": flags["batch_size"] or 8, **{name: flags[name] for name in names}}


def _model_and_text(
    flags: dict[str, Any], assignments: list[str], command: str, split: str
) -> tuple[Loaded, Any, str]:
    """Returns a model, the tokens of --text or else of a split of its run, and their name."""
    if flags["text"]:
        from jaxformer.evaluate import likelihood

        text = likelihood.read_text(flags["text"])
        loaded = load(flags, assignments, command)
        return loaded, loaded.tokenizer.encode(text), flags["text"]
    if flags["from"]:
        raise UserError(
            f"{command} --from={flags['from']} needs --text, a file; only a run in --workdir has "
            "data of its own"
        )
    chosen, params, workdir = restore(flags, assignments, command)
    from jaxformer.train import load as loading
    from jaxformer.train import prepare
    from jaxformer.train.experiment import build

    loaded = loading.of_run(chosen, params, workdir)
    with chosen.unlocked():
        chosen.data.tokenizer = str(workdir)  # the run's own, whatever the data would give today
    dataset = prepare.load(build(chosen), say=print)
    layout = getattr(dataset, split).layout
    if not hasattr(layout, "tokens_N"):
        raise UserError(
            f"{command}: data.layout={chosen.data.layout} is no stream of text; give --text FILE"
        )
    return loaded, layout.tokens_N, f"{split} split of {chosen.data.source}"
