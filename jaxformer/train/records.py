"""What a run has written so far: records, samples, starts; read back, and cut where it resumes."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # {"step", "split", metrics ..., "wall": {...}}

METRICS, SAMPLES, ENVIRONMENT = "metrics.jsonl", "samples.txt", "environment.json"
CONFIG = "config.json"
_SAMPLE = re.compile(r"^=== step (\d+)\b", re.MULTILINE)


def read_records(workdir: str | Path, split: str | None = None) -> list[Record]:
    """Returns the records of a run, oldest first; a line torn by a crash is passed over.

    Args:
      workdir: the run's folder.
      split: "train" or "validation", or None for both.
    """
    path = Path(workdir) / METRICS
    if not path.exists():
        return []
    records = [record for line in path.read_bytes().splitlines() if (record := _parse(line))]
    return [record for record in records if split in (None, record["split"])]


def trace(workdir: str | Path, split: str = "train") -> list[Record]:
    """Returns the records without wall times: what an uninterrupted run repeats to the bit."""
    return [
        {key: value for key, value in record.items() if key != "wall"}
        for record in read_records(workdir, split)
    ]


def read_resumes(workdir: str | Path) -> list[int]:
    """Returns the steps from which the run went on after a stop, ascending."""
    steps = {start["step"] for start in _read_json(Path(workdir) / ENVIRONMENT).get("starts", [])}
    return sorted(steps - {0})


def read_config(workdir: str | Path) -> Record:
    """Returns the config that a run was saved with; {} where there is none."""
    return _read_json(Path(workdir) / CONFIG)


def cut(workdir: Path, step: int) -> list[Record]:
    """Drops records and samples of later steps than `step`, atomically; returns what is left.

    A run that resumes at `step` makes the later ones again, so the file holds one consistent trace.
    """
    path = workdir / METRICS
    records = [record for record in read_records(workdir) if record["step"] <= step]
    kept = b"".join(encode(record) for record in records)
    if path.exists() and path.read_bytes() != kept:
        write_atomically(path, kept)
    samples = workdir / SAMPLES
    if samples.exists():
        text = samples.read_text(encoding="utf-8")
        late = [m.start() for m in _SAMPLE.finditer(text) if int(m[1]) > step]
        if late:
            write_atomically(samples, text[: late[0]].encode())
    return records


def encode(record: Record) -> bytes:
    """Returns the record as one line of JSON, floats in full, what is not finite as null."""
    return json.dumps({k: _finite(v) for k, v in record.items()}, allow_nan=False).encode() + b"\n"


def add_start(workdir: Path, step: int, time: str, environment: Record) -> None:
    """Writes environment.json: this start's environment, and the list of all starts."""
    path = workdir / ENVIRONMENT
    starts = [start for start in _read_json(path).get("starts", []) if start["step"] <= step]
    starts.append({"step": step, "time": time})
    write_json(path, {**environment, "starts": starts if step else starts[-1:]})


def write_json(path: Path, value: Any) -> None:
    """Writes JSON for people to read; tuples become lists, what JSON lacks its str()."""
    write_atomically(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the file so that a crash leaves the old one or the new one, nothing between."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sample_block(step: int, prompt: str, text: str) -> str:
    """Returns one entry of samples.txt."""
    return f"=== step {step} · prompt {prompt!r}\n{text.rstrip()}\n\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not {"step", "split"} <= record.keys():
        return None
    return {key: math.nan if value is None else value for key, value in record.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
