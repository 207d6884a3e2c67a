"""What a run reads, how it is split, tokenised and laid out in rows."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from jaxformer.errors import UserError, one_of

LAYOUTS = ("windows", "packed", "padded", "seq2seq", "seq2seq_packed", "qa", "sentence_pairs")
SEQ2SEQ = ("seq2seq", "seq2seq_packed")
LABELS = ("", "field", "package", "value", "tags")
PAIR_TASKS = ("next", "order")
SPLITS = ("auto", "file", "tail")
TRAINED = ("bpe", "wordpiece")


@dataclasses.dataclass(frozen=True)
class Config:
    """The data of a run. Everything that decides what a batch holds, but the seed and the step."""

    # "stdlib" (the source of this machine's Python standard library), a path or glob of text files
    # (one document each), of .jsonl/.csv/.tsv files (one document a row; each may end in .gz),
    # "hf:NAME[:CONFIG][@SPLIT]" (a Hugging Face dataset; the split is "train" unless named), or
    # "listops:4000:512" (4,000 texts of at most 512 characters, made by a rule; or "needle:…").
    source: str = "stdlib"
    # Of rows: the field with the text; "a.b" is field b of field a. With labels = "tags" the field
    # with the list of words, then "tokens" unless another is named.
    text_field: str = "text"
    text_pair_field: str = ""  # of rows: the field with a second text, for pairs of sentences
    # Of rows: the field with the class or number, when labels = "field" or "value"; with "tags" the
    # field with the list of tags, then "tags" unless another is named.
    label_field: str = "label"
    fields: tuple[str, ...] = ()  # names of the columns of a file that has no header line
    delimiter: str = ""  # between columns; "" = by the file's ending. Given, a .txt file has rows
    hf_streaming: bool = False  # read a Hugging Face dataset over the network, without storing it
    # "byte", "char", "bpe:4096" or "wordpiece:8000" (trained on the training split), the path of a
    # tokenizer.json (or vocab.txt, *.model), of a run's workdir or of a published model's folder.
    tokenizer: str = "byte"
    extra_ids: int = 0  # sentinel tokens <extra_id_0> … that the tokenizer must have (T5: 100)
    seq_len: int = 256  # T, tokens in a row
    batch_size: int = 16  # B, rows in a global batch
    # "windows": all documents are one stream, cut into rows; "packed": whole documents share a row
    # and do not see each other (longer ones are cut); "padded": one document a row, between the
    # tokenizer's special tokens ([CLS] … [SEP]), then padding. A long document is cut into several
    # rows, but truncated if it has a label. "seq2seq": one pair of source and target a row;
    # "seq2seq_packed": several in training, which do not see each other. "qa": question and
    # context, from a file of SQuAD's format. "sentence_pairs": two pieces of documents a row.
    layout: str = "windows"
    # "" none; "field": label_field is a class; "package": a file's topmost folder is; "value":
    # label_field is a number; "tags": every word has a tag, in rows with lists or in a CoNLL file
    # (a word a line, its tag in the last column, an empty line between sentences).
    labels: str = ""
    # The classes or tags in the order of their numbers, those too that no document has; () = those
    # that the documents have, by name.
    class_names: tuple[str, ...] = ()
    pad_left: bool = False  # layout "padded": the padding stands first (XLNet)
    # Layouts "seq2seq", whose targets have seq_len tokens: the field of a row with the target, or
    # files whose lines answer those of data.source one by one (both may be globs).
    target_field: str = ""
    target_source: str = ""
    validation_target_source: str = ""
    source_len: int = 0  # S, tokens of a source; 0 = seq_len
    source_prefix: str = ""  # written before every source: "translate English to German: "
    start_id: int = -1  # that a target begins with; -1 = the tokenizer's bos, else eos, else pad
    # Layout "qa": a context is cut into windows that begin every doc_stride tokens.
    doc_stride: int = 128
    max_question: int = 64  # tokens; longer questions lose their end
    # Layout "sentence_pairs": "next" (does b follow a, Devlin 2019) or "order" (do a and b stand in
    # their order, Lan 2020). Empty lines part a text into documents, full stops and lines these
    # into sentences.
    pair_task: str = "next"
    # What is held out: "file": whole files (rows; layout "qa": articles), chosen by a hash of their
    # name (text); "tail": the last part; "auto": "tail" for a single text file, else "file".
    split: str = "auto"
    validation_fraction: float = 0.1
    validation_source: str = ""  # a source of its own for validation; then nothing is held out
    # Layout "windows": evaluation windows begin every eval_stride tokens and score only their last
    # eval_stride tokens, so that nearly every token is scored with a long context. 0 = seq_len.
    eval_stride: int = 0
    # Layout "windows": each chunk of retrieval_chunk tokens comes with its nearest neighbours in
    # the training split, none of a document of its own (model.family="retro" reads them). How alike
    # chunks are is said by "tfidf" (words that they share) or a published encoder, by its folder.
    retrieval: str = ""
    retrieval_chunk: int = 64
    neighbours: int = 2  # of each chunk; each is a chunk and as many tokens after it
    # Evaluation scores the chunks alone of which a neighbour has no more than this part in one run.
    retrieval_overlap: float = 1.0
    snippet_lines: int = 0  # cut every document into documents of so many lines; 0 = leave whole
    max_documents: int = 0  # read no more documents (files or rows) than this; 0 = all
    max_bytes: int = 0  # read no more text than this; 0 = all
    cache_dir: str = ""  # "" = $JAXFORMER_CACHE, or jaxformer/ in the user's cache directory

    def __post_init__(self):
        one_of(self.layout, LAYOUTS, "data.layout")
        one_of(self.labels, LABELS, "data.labels")
        one_of(self.pair_task, PAIR_TASKS, "data.pair_task")
        one_of(self.split, SPLITS, "data.split")
        for name in ("seq_len", "batch_size", "doc_stride", "max_question", "retrieval_chunk",
                     "neighbours"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"data.{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("eval_stride", "snippet_lines", "max_documents", "max_bytes", "source_len",
                     "extra_ids"):  # fmt: skip
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
        self._check_layout()
        self._check_targets()
        self._check_retrieval()
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

    def _check_layout(self) -> None:
        """Raises UserError for a key that the layout or the labels do not know."""
        if self.labels and self.layout != "padded":
            raise UserError(
                f"data.labels={self.labels!r} needs one document a row: set data.layout='padded' "
                f"(it is {self.layout!r})"
            )
        needs = {
            "text_pair_field": ("padded",),
            "pad_left": ("padded",),
            "eval_stride": ("windows",),
            "retrieval": ("windows",),
            "snippet_lines": ("windows", "packed", "padded"),
            "target_field": SEQ2SEQ,
            "target_source": SEQ2SEQ,
            "source_len": SEQ2SEQ,
            "source_prefix": SEQ2SEQ,
        }
        for key, layouts in needs.items():
            if getattr(self, key) and self.layout not in layouts:
                empty = repr(type(getattr(self, key))())
                raise UserError(
                    f"data.{key} needs data.layout={' or '.join(map(repr, layouts))} (it is "
                    f"{self.layout!r}); set it to {empty}"
                )
        if self.layout == "qa" and self.split == "tail":
            raise UserError(
                "data.layout='qa' holds out whole articles, so that no context is in both splits: "
                "set data.split='auto'"
            )
        if self.class_names and self.labels in ("", "value"):
            raise UserError(
                f"data.class_names={','.join(self.class_names)} orders classes, and data.labels="
                f"{self.labels!r} has none; set it to ()"
            )
        if self.labels == "tags" and (self.text_pair_field or self.snippet_lines):
            raise UserError(
                "data.labels='tags' reads words one by one: leave data.text_pair_field empty and "
                "data.snippet_lines 0"
            )

    def _check_retrieval(self) -> None:
        """Raises UserError unless rows are made of whole chunks."""
        if not 0 <= self.retrieval_overlap <= 1:
            raise UserError(
                f"data.retrieval_overlap={self.retrieval_overlap} is a part of a chunk, 0 to 1"
            )
        if not self.retrieval:
            return
        for name in ("seq_len", "eval_stride"):
            length = getattr(self, name)
            if length % self.retrieval_chunk:
                near = max(1, round(length / self.retrieval_chunk)) * self.retrieval_chunk
                raise UserError(
                    f"data.retrieval_chunk={self.retrieval_chunk} does not divide data.{name}="
                    f"{length}; try --config.data.{name}={near}"
                )

    def _check_targets(self) -> None:
        """Raises UserError unless a sequence-to-sequence layout has one place to find targets."""
        if self.layout in SEQ2SEQ and bool(self.target_field) == bool(self.target_source):
            raise UserError(
                f"data.layout={self.layout!r} needs one of data.target_field (of rows) and "
                "data.target_source (files with a line for each of data.source's)"
            )
        if bool(self.validation_target_source) != bool(
            self.target_source and self.validation_source
        ):
            raise UserError(
                "data.validation_source and data.validation_target_source belong together where "
                f"there is a data.target_source; they are {self.validation_source!r} and "
                f"{self.validation_target_source!r}"
            )

    @property
    def source_length(self) -> int:
        """S, tokens of a source."""
        return self.source_len or self.seq_len

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
