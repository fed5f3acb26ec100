"""The documents name files and folders that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TREES = "csrc|chattn_cuda|tests|tools|bench|docs|examples"
PATH = re.compile(rf"(?<![\w/.:-])(?:{TREES})/[\w./*<>{{}},-]*")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
#: what commands make, and what git ignores
MADE = ("bench/results",)


def spelled(path: str) -> list[str]:
    """A path with {a,b} in it as several."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces is None:
        return [path]
    before, behind = path[: braces.start()], path[braces.end() :]
    return [p for part in braces[1].split(",") for p in spelled(f"{before}{part}{behind}")]


def missing(text: str, folder: Path) -> list[str]:
    """The paths and links of a document that lead nowhere."""
    found = PATH.findall(text)
    named = {path.rstrip(".,-") for written in found for path in spelled(written)}
    gone = {path for path in named if not path.startswith(MADE) and not exists(path)}
    return sorted(gone | {link for link in LINK.findall(text) if not (folder / link).exists()})


def exists(path: str) -> bool:
    """Whether a path is there; <name> in it stands for any text."""
    return any(ROOT.glob(re.sub(r"<[^>]*>", "*", path).rstrip("/")))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_paths_lead_somewhere(document: Path) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout")
    assert missing(document.read_text(), document.parent) == []


def test_a_folder_that_went_is_missed() -> None:
    text = "`chattn_cuda/ops/`, csrc/blocks/{sk,gone}/*.cu, csrc/none/, [x](docs/none.md)"
    assert missing(text, ROOT) == ["csrc/blocks/gone/*.cu", "csrc/none/", "docs/none.md"]
