"""Holds the documents to the truth: links lead somewhere, every guarantee has its test.

Every rule is a function from a text to a list of complaints, so that each can be shown to complain.
"""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def text_complaints(name: str, text: str) -> list[str]:
    """What no file may hold: a folder of one machine, the host of a package index, a promise."""
    wrong = {
        "a path of one machine": r"(?<![\w.<$}/~])/(work|root|home|Users|opt|mnt)/\w",
        "the host of a package index": r"py" + r"pi\.org|python" + r"hosted",
        "an open promise": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    }
    return [f"{name}:{i}: {what}"
            for what, pattern in wrong.items()
            for i, line in enumerate(text.splitlines(), 1)
            if re.search(pattern, line)]  # fmt: skip


def documents() -> list[Path]:
    """Every text of the repository that a person wrote."""
    folders = ("jaxformer", "experiments", "tests", "launch", ".ci")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*")]
    files += [path for path in REPOSITORY.iterdir() if not path.name.startswith(".")]
    return [path for path in files if path.is_file() and path != Path(__file__).resolve()
            and (path.suffix in {".py", ".md", ".sh", ".toml", ".txt", ".ipynb", ".yaml", ".sbatch"}
                 or path.parent.name == ".ci")
            and not any(part.startswith(".ipynb") for part in path.parts)]  # fmt: skip


def test_no_file_names_a_machine_or_promises():
    names = [
        (str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8"))
        for path in documents()
    ]
    assert len(names) > 20
    assert [complaint for name, text in names for complaint in text_complaints(name, text)] == []


def test_a_machine_or_a_promise_is_named():
    for text in ("open('/root/x')", "# TODO: later", "https://py" + "pi.org/simple"):
        assert len(text_complaints("x.py", "\n" + text)) == 1, text
    for text in ("jaxformer/work/x", "https://x.org/home/a", "${x}/work/a", "~/work/a", "a/root/b"):
        assert not text_complaints("x.py", text), text


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a Markdown text."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def link_complaints(folder: Path, name: str, text: str) -> list[str]:
    complaints = []
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target, _, anchor = (link[0] or link[1]).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        if target and not (folder / target).exists():
            complaints.append(f"{name}: {target} is not there")
            continue
        there = (folder / target).read_text(encoding="utf-8") if target.endswith(".md") else text
        if anchor and (not target or target.endswith(".md")) and anchor not in anchors(there):
            complaints.append(f"{name}: no heading for {target}#{anchor}")
    return complaints


def guarantee_complaints(folder: Path, text: str) -> list[str]:
    """Each row of the table of guarantees must link to a test; a `test_name` in it must exist."""
    table = re.search(r"^\|[^\n]*guarantee[^\n]*\n\|[-| :]+\n((?:\|[^\n]*\n?)+)", text, re.I | re.M)
    if not table:
        return ["no table of guarantees"]
    complaints = []
    for row in table[1].splitlines():
        links = [folder / link for link in re.findall(r"\]\((tests/[^)#\s]+\.py)[^)]*\)", row)]
        if not links or not all(link.exists() for link in links):
            complaints.append(f"no test: {row}")
            continue
        code = "".join(link.read_text(encoding="utf-8") for link in links)
        for test in re.findall(r"`(test_\w+)`", row):
            if f"def {test}(" not in code:
                complaints.append(f"no {test}: {row}")
    return complaints


def test_documents_link_to_what_is_there():
    for path in REPOSITORY.glob("*.md"):
        assert not link_complaints(REPOSITORY, path.name, path.read_text(encoding="utf-8"))
    assert not guarantee_complaints(
        REPOSITORY, (REPOSITORY / "README.md").read_text(encoding="utf-8")
    )


def test_a_broken_link_or_guarantee_is_named(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("def test_one(): ...")
    table = "| Guarantee | Test |\n|---|---|\n| x | [`test_one`](tests/test_a.py) |\n"
    assert not guarantee_complaints(tmp_path, table)
    assert not link_complaints(tmp_path, "x", "# A b\n[x](#a-b) [y](https://y.org)" + table)
    assert guarantee_complaints(tmp_path, table + "| y | |\n") == ["no test: | y | |"]
    assert len(guarantee_complaints(tmp_path, table.replace("test_one", "test_two"))) == 1
    assert len(guarantee_complaints(tmp_path, table.replace("test_a", "test_b"))) == 1
    assert guarantee_complaints(tmp_path, "") == ["no table of guarantees"]
    for text in ("[x](gone.py)", "# A\n[x](#b)", '<img src="gone.png">'):
        assert len(link_complaints(tmp_path, "x", text)) == 1, text
