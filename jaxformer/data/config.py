"""What a run reads, how it is split, tokenised and laid out in rows."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from jaxformer.errors import UserError, one_of

LAYOUTS = ("windows", "packed", "padded")
LABELS = ("", "field", "package")
SPLITS = ("auto", "file", "tail")
TRAINED = ("bpe", "wordpiece")


@dataclasses.dataclass(frozen=True)
class Config:
    """The data of a run. Everything that decides what a batch holds, but the seed and the step."""

    # "stdlib" (the source of this machine's Python standard library), a path or glob of text files
    # (one document each), of .jsonl/.csv/.tsv files (one document a row; each may end in .gz), or
    # "hf:NAME[:CONFIG][@SPLIT]" (a Hugging Face dataset; the split is "train" unless named).
    source: str = "stdlib"
    text_field: str = "text"  # of rows: the field with the text
    text_pair_field: str = ""  # of rows: the field with a second text, for pairs of sentences
    label_field: str = "label"  # of rows: the field with the class, when labels = "field"
    fields: tuple[str, ...] = ()  # names of the columns of a file that has no header line
    delimiter: str = ""  # between columns; "" = by the file's ending. Given, a .txt file has rows
    hf_streaming: bool = False  # read a Hugging Face dataset over the network, without storing it
    # "byte", "char", "bpe:4096" or "wordpiece:8000" (trained on the training split), the path of a
    # tokenizer.json, or of a run's workdir (whose tokenizer is used).
    tokenizer: str = "byte"
    seq_len: int = 256  # T, tokens in a row
    batch_size: int = 16  # B, rows in a global batch
    # "windows": all documents are one stream, cut into rows; "packed": whole documents share a row
    # and do not see each other (longer ones are cut); "padded": one document a row, [CLS] … [SEP],
    # then padding. A long document is cut into several rows, but truncated if labels = "field".
    layout: str = "windows"
    labels: str = ""  # "" none; "field": label_field; "package": a file's topmost folder
    # What is held out: "file": whole files (rows), chosen by a hash of their name (text); "tail":
    # the last part; "auto": "tail" for a single text file, else "file".
    split: str = "auto"
    validation_fraction: float = 0.1
    validation_source: str = ""  # a source of its own for validation; then nothing is held out
    # Layout "windows": evaluation windows begin every eval_stride tokens and score only their last
    # eval_stride tokens, so that nearly every token is scored with a long context. 0 = seq_len.
    eval_stride: int = 0
    snippet_lines: int = 0  # cut every document into documents of so many lines; 0 = leave whole
    max_documents: int = 0  # read no more documents (files or rows) than this; 0 = all
    max_bytes: int = 0  # read no more text than this; 0 = all
    cache_dir: str = ""  # "" = $JAXFORMER_CACHE, or jaxformer/ in the user's cache directory

    def __post_init__(self):
        one_of(self.layout, LAYOUTS, "data.layout")
        one_of(self.labels, LABELS, "data.labels")
        one_of(self.split, SPLITS, "data.split")
        for name in ("seq_len", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("eval_stride", "snippet_lines", "max_documents", "max_bytes"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name} must be 0 (off) or more, not {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                "data.validation_fraction must lie between 0 and 1, "
                f"not {self.validation_fraction}; for a validation file of its own "
                "set data.validation_source"
            )
        if not self.source:
            raise UserError(
                'data.source is empty; give "stdlib", a path or glob, or "hf:NAME[:CONFIG][@SPLIT]"'
            )
        if self.labels and self.layout != "padded":
            raise UserError(
                f"data.labels={self.labels!r} needs one document a row: set data.layout='padded' "
                f"(it is {self.layout!r})"
            )
        if self.text_pair_field and self.layout != "padded":
            raise UserError(
                f"data.text_pair_field needs data.layout='padded' (it is {self.layout!r})"
            )
        if self.eval_stride and self.layout != "windows":
            raise UserError(
                f"data.eval_stride needs data.layout='windows' (it is {self.layout!r}); set it to 0"
            )
        if self.eval_stride > self.seq_len:
            raise UserError(
                f"data.eval_stride={self.eval_stride} is more than data.seq_len={self.seq_len}: "
                f"tokens between windows would not be scored; choose 1 to {self.seq_len}"
            )
        if self.layout == "padded" and self.seq_len < 4:
            raise UserError(
                f"data.seq_len={self.seq_len} leaves no room for a text between [CLS] and [SEP]; "
                "set it to 4 or more"
            )
        self.trained_tokenizer()

    def trained_tokenizer(self) -> tuple[str, int] | None:
        """Returns ("bpe" | "wordpiece", vocabulary size) when the tokenizer is to be trained."""
        match = re.fullmatch(r"(\w+)(?::(.*))?", self.tokenizer)
        if not match or match[1] not in TRAINED or os.path.exists(self.tokenizer):
            return None
        least = 300 if match[1] == "bpe" else 100  # 256 bytes and six specials; an alphabet
        if not (match[2] or "").isdigit() or int(match[2]) < least:
            raise UserError(
                f"data.tokenizer={self.tokenizer!r}: say how many tokens to train, {least} or "
                f"more, as in '{match[1]}:4096'"
            )
        return match[1], int(match[2])

    def cache_folder(self) -> Path:
        """Returns the folder that holds tokenised data, from cache_dir or the environment."""
        if self.cache_dir:
            return Path(self.cache_dir).expanduser()
        if os.environ.get("JAXFORMER_CACHE"):
            return Path(os.environ["JAXFORMER_CACHE"]).expanduser() / "data"
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(base).expanduser() / "jaxformer" / "data"
