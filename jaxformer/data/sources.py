"""Where documents are, found without opening a file: the standard library, paths, globs, names."""

from __future__ import annotations

import collections
import dataclasses
import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jaxformer.data import synthetic
from jaxformer.data.config import Config
from jaxformer.errors import UserError, suggest

# Folders of the standard library that are tests or not part of it.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
ROWS = (".jsonl", ".csv", ".tsv")
# A package is a class if it has enough text: files, so that both splits have some, and bytes.
PACKAGE_FILES, PACKAGE_BYTES = 8, 1 << 17


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a config's documents are, known without opening a file.

    Attributes:
      name: as the user gave it, for messages.
      kind: "text" (a file is a document), "rows" (a row is one), "hf", "parallel" (two files' lines
        are one), "conll" (a sentence is one), "squad" (a question is one) or "made" (by a rule).
      files: the files, in reading order; "parallel": those of the sources, then of the targets.
      names: their paths below the folder that they share; what splits and packages go by.
    """

    name: str
    kind: str
    files: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()

    def stat_key(self) -> list:
        """Returns what changes when a file changes, without reading any."""
        stats = [(str(f), f.stat()) for f in self.files]
        files = [(p, s.st_size, s.st_mtime_ns) for p, s in stats]
        return [self.name, self.kind, files, *self._rule()]

    def size(self) -> int:
        """Returns the bytes of all files; 0 for a data set that is not made of files."""
        return sum(file.stat().st_size for file in self.files)

    def content_key(self) -> list:
        """Returns what changes when the content changes, on whatever machine."""
        hashes = []
        for file, name in zip(self.files, self.names):
            try:
                with open(file, "rb") as stream:
                    hashes.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from None
        return [self.kind, hashes] if self.files else [self.kind, self.name, *self._rule()]

    def _rule(self) -> list:
        """Returns what changes when the rule does that a made source is made by: its first text."""
        return list(next(synthetic.parse(self.name).examples())) if self.kind == "made" else []


def find(name: str, config: Config, option: str = "data.source", targets: str = "") -> Source:
    """Finds the files of a source, within the config's limits.

    Args:
      name: a path, a glob, "stdlib", "hf:…" or "listops:4000:512".
      config: with the limits, and whether files hold rows.
      option: which key of the config the name is from, for messages.
      targets: a path or glob of files whose lines belong to those of `name`, or "".

    Raises:
      UserError: nothing there, or not as many files of targets.
    """
    if name.startswith("hf:"):
        return _unpackaged(Source(name, "hf"), config)
    if synthetic.is_made(name):
        synthetic.parse(name, option)  # a mistake is told before anything is made
        return _made(Source(name, "made"), config)
    if name == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [Path(folder, file) for folder, file in _walk(root) if file.endswith(".py")]
        if not files:
            raise UserError(f"data.source='stdlib': this Python has no source files in {root}")
    else:
        files = _files(name, option)
        if targets:
            second = _files(targets, option.replace("source", "target_source"))
            if len(second) != len(files):
                raise UserError(
                    f"{option}={name!r} is {len(files)} files, but its targets {targets!r} are "
                    f"{len(second)}; each needs its own"
                )
            files += second
        root = Path(os.path.commonpath([file.parent for file in files]))
    source = Source(
        name,
        "text" if name == "stdlib" else "parallel" if targets else _kind(files[0], config),
        tuple(files),
        tuple(file.relative_to(root).as_posix() for file in files),
    )
    return _limit(source, config) if source.kind == "text" else _unpackaged(source, config)


def find_all(config: Config) -> list[Source]:
    """Finds data.source, and data.validation_source if there is one, with their targets."""
    found = [find(config.source, config, "data.source", config.target_source)]
    if config.validation_source:
        option, targets = "data.validation_source", config.validation_target_source
        found.append(find(config.validation_source, config, option, targets))
    return found


def _files(name: str, option: str) -> list[Path]:
    pattern = os.path.expanduser(name)
    if os.path.isdir(pattern):
        raise UserError(
            f"{option}={name!r} is a folder; give a glob such as '{name.rstrip('/')}/**/*.txt'"
        )
    found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
    files = [Path(file).resolve() for file in sorted(found) if os.path.isfile(file)]
    if not files:
        raise UserError(f"{option}={name!r}: no such file{_neighbour(pattern)}")
    return files


def _kind(file: Path, config: Config) -> str:
    rows = suffix(file) in ROWS
    if config.layout == "qa":
        return "rows" if rows else "squad"
    if config.labels == "tags":
        return "rows" if rows else "conll"
    return "rows" if rows or config.fields or config.delimiter else "text"


def _unpackaged(source: Source, config: Config) -> Source:
    if config.labels == "package":
        raise UserError(
            f"data.labels='package' tells files' folders, but {source.name!r} is not one document "
            "a file; use data.labels='field'"
        )
    return source


def _made(source: Source, config: Config) -> Source:
    if config.layout not in ("windows", "packed", "padded") or config.labels not in ("", "field"):
        raise UserError(
            f"data.source={source.name!r} makes texts with classes: set data.layout='padded' and "
            f"data.labels='field' (they are {config.layout!r} and {config.labels!r})"
        )
    return source


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in NOT_LIBRARY and "config-" not in f)
        yield from ((folder, file) for file in sorted(files))


def suffix(file: Path) -> str:
    """Returns a file's ending: .csv for x.CSV.gz."""
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _neighbour(path: str) -> str:
    folder = os.path.dirname(path) or "."
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return suggest(os.path.basename(path), names)


def package(name: str) -> str:
    """Returns the topmost folder of a file's name, "" for a file outside of all folders."""
    return name.split("/", 1)[0] if "/" in name else ""


def _limit(source: Source, config: Config) -> Source:
    """Keeps the files that the limits, and the packages that are classes, leave."""
    pairs = list(zip(source.files, source.names))
    if config.labels == "package":
        files = collections.Counter(package(name) for _, name in pairs)
        sizes: collections.Counter[str] = collections.Counter()
        for file, name in pairs:
            sizes[package(name)] += file.stat().st_size
        kept = {p for p in files if p and files[p] >= PACKAGE_FILES and sizes[p] >= PACKAGE_BYTES}
        if len(kept) < 2:
            raise UserError(
                f"data.labels='package': {source.name!r} has {len(kept)} folders with at least "
                f"{PACKAGE_FILES} files and {PACKAGE_BYTES} bytes; classes need two or more"
            )
        pairs = [(file, name) for file, name in pairs if package(name) in kept]
    pairs = pairs[: config.max_documents or None]
    if config.max_bytes:
        total, count = 0, 0
        while count < len(pairs) and total < config.max_bytes:
            total += pairs[count][0].stat().st_size
            count += 1
        pairs = pairs[:count]
    return dataclasses.replace(
        source, files=tuple(f for f, _ in pairs), names=tuple(n for _, n in pairs)
    )


def key(text: str) -> int:
    """Returns 64 bits of a hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
