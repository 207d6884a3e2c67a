"""The command line: parse, call, print. A module holds a few commands; `flags` what they share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from jaxformer.cli import comparing, lengths, models, retrieval, runs
from jaxformer.cli.flags import MODEL, load, parse, required
from jaxformer.errors import UserError, suggest

USAGE = """jaxformer COMMAND [flags] [--config.SECTION.KEY=VALUE ...]

  train      --config experiments/x.py [--workdir runs/x]   train, or go on where it stopped
  evaluate   --workdir runs/x [--out texts.jsonl]           loss over the whole validation split,
                                                            and what its task is judged by
  evaluate   --from DIR --config experiments/x.py           the same of a published checkpoint, on
                                                            the data of an experiment
  generate   --workdir runs/x --prompt TEXT                 text, as it is written
  embed      --workdir runs/x --text FILE --out FILE.npy    one vector for each line of a file
  perplexity --workdir runs/x --text FILE                   of a text file, with sliding context
  datastore  --workdir runs/x [--text FILE] --out DIR       kNN-LM's memory of the training split,
                                                            or of a file
  perplexity --workdir runs/x --datastore DIR               with its nearest neighbours there, on
             [--text FILE]                                  the validation split, or a file
  index      --from ENCODER --text FOLDER --out DIR         passages of a folder's files, each with
                                                            a vector, for questions to find
  generate   --workdir runs/x --retrieve DIR --prompt TEXT  text after the passages that the prompt
                                                            finds, whose places are told
  visualize  loss runs/x [runs/y ...] --out loss.png        loss curves of one or several runs
  visualize  attention --workdir runs/x --text TEXT --out attention.png
  extrapolate runs/x [runs/y ...] --lengths 64,128,256      perplexity over the length of what is
                                                            read at once, drawn to --out
  compare    --config FILE --out DIR [--variants a,b] [--tasks a,b] [--lengths N,N]
                                                            attention variants, trained on tasks at
                                                            equal parameters: a table and a figure
  convert    --from DIR --to DIR                            a published checkpoint, or a run, to
                                                            one that transformers loads

flags
  --config FILE             the experiment; commands on a run read the run's own by default
  --config.SECTION.KEY=V    changes one key of it; --print_config shows them all
  --workdir DIR             the run's folder; for train runs/NAME by default
  --from DIR                instead of --workdir, in evaluate, generate, embed, perplexity,
                            datastore and visualize attention: a published checkpoint
                            (config.json, safetensors, tokenizer)
  --checkpoint WHICH        latest (default), best, or a step's number
  --prompt TEXT             may be given several times
  --metrics NAMES           of written texts: bleu,chrf (default), rouge
  --pooling NAME            of embed: mean (default), first, last, pooler; --normalize to length 1
  --max_length N            of embed and perplexity: most tokens that are read at once
  --stride N                of perplexity: tokens that each window but the first scores; half of
                            max_length by default
  --batch_size N            of embed and perplexity: most rows that run at once
  --lengths N,N,...         of extrapolate, in tokens; --tokens N: of the validation text, at each
  --max_tokens N            of datastore, and perplexity with one: most tokens, from all over the
                            text
  --dtype NAME              of a datastore's keys: float16 (default), float32
  --neighbours N            of perplexity with a datastore: how many, 64 by default
  --lambdas X,X,...         their shares of the probability that are tried; --temperature X,X,...:
                            what squared distances are divided by. The best on one half of the text
                            is told of the other
  --search NAME             of neighbours: exact (default), faiss, faiss_ivf
  --words N                 of index: a passage's, 100 by default; --overlap N: those that it shares
                            with the one before, a fifth of them by default
  --top N                   of generate with an index: how many passages, 3 by default
  --template TEXT           of the prompt with them: "{passages}\\n\\n{question}" by default
  --encoder DIR             what made the index, if it is no longer where it was
  --layers N,N --heads N,N --rows N,N
                            of visualize attention: only these layers, heads and queries, from 0
  --print_config            print the whole config and end
  --dry_run                 print shapes, parameters and memory, and end
  --require_platform NAME   end at once unless JAX runs on cpu, gpu or tpu
  --debug                   show the traceback of an error
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(USAGE, end="")
            return 0
        commands: dict[str, Callable[[list[str]], None]] = {
            "train": runs.train, "evaluate": runs.evaluate, "generate": models.generate,
            "embed": models.embed, "perplexity": models.perplexity, "visualize": visualize,
            "convert": models.convert, "extrapolate": lengths.extrapolate,
            "datastore": retrieval.datastore, "index": retrieval.index,
            "compare": comparing.compare,
        }  # fmt: skip
        if argv[0] not in commands:
            raise UserError(
                f"{argv[0]!r} is not a command{suggest(argv[0], commands)}; "
                f"valid: {', '.join(commands)}"
            )
        if {"-h", "--help"} & set(argv):
            print(USAGE, end="")
            return 0
        commands[argv[0]]([word for word in argv[1:] if word != "--debug"])
        return 0
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def visualize(words: list[str]) -> None:
    """Draws the losses of runs, or where a model looks."""
    kinds = ("loss", "attention")
    if not words or words[0] not in kinds:
        given = words[0] if words else ""
        raise UserError(
            f"visualize {given!r}: give one of {', '.join(kinds)}{suggest(given, kinds)}"
        )
    from jaxformer.modules.attention import Maps
    from jaxformer.visualize import attention_maps, loss_curves, loss_label

    if words[0] == "loss":
        from jaxformer.train.records import read_config, read_records, read_resumes

        flags, _ = parse(words[1:], "--out", places=len(words))
        if not flags["places"]:
            raise UserError("visualize loss needs a run; e.g. jaxformer visualize loss runs/x")
        records = {name: read_records(name) for name in flags["places"]}
        for name, found in records.items():
            if not found:
                raise UserError(f"visualize loss {name}: no metrics.jsonl there; give a workdir")
        alone = flags["places"][0] if len(records) == 1 else None
        resumes = tuple(read_resumes(alone)) if alone else ()
        label = loss_label(*map(read_config, records))
        figure, out = loss_curves(records, resumes=resumes, ylabel=label), flags["out"]
    else:
        flags, assignments = parse(
            words[1:], *MODEL, "--text", "--out", "--layers", "--heads", "--rows"
        )
        parts = {name: lengths.places(f"--{name}", flags[name]) for name in Maps._fields}
        text = required(flags, "text", "visualize attention", "TEXT")
        loaded = load(flags, assignments, "visualize attention")
        from jaxformer.train.sample import Speaker

        maps = Maps(**parts) if any(parts.values()) else None
        weights_LNTS, tokens = Speaker.of(loaded).attention(loaded.params, text, maps)
        figure, out = attention_maps(
            weights_LNTS, tokens, layers=parts["layers"], heads=parts["heads"],
            query_tokens=[tokens[row] for row in parts["rows"]] if parts["rows"] else None,
        ), flags["out"]  # fmt: skip
    out = out or f"{words[0]}.png"
    try:
        figure.savefig(out, dpi=150)
    except (OSError, ValueError) as error:  # no such folder; no such format
        raise UserError(f"--out={out} cannot be written: {error}") from None
    print(f"wrote {out}")
