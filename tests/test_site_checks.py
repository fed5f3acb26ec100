"""tools/site_checks.py: what is missing in the site of the documents is noticed."""

from __future__ import annotations

import importlib
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import site_checks  # noqa: E402

HEAD = b"# Sphinx inventory version 2\n# Project: p\n# Version: 0\n# The rest is compressed.\n"


def names() -> list[str]:
    found = [n for package in site_checks.PACKAGES for n in site_checks.public_names(package)]
    return [site_checks.WHOLE_PATHS.get(name, name) for name in found]


def warnings(site: Path, known: list[str], page: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    body = "".join(f"{name} py:function 1 reference.html#$ -\n" for name in known)
    (site / "objects.inv").write_bytes(HEAD + zlib.compress(body.encode()))
    (site / "index.html").write_text(page)
    found: list[str] = []
    monkeypatch.setattr(site_checks.log, "warning", lambda text, *a: found.append(text % a))
    site_checks.on_post_build({"site_dir": str(site)})
    return found


@pytest.mark.parametrize("package", site_checks.PACKAGES)
def test_public_names_are_read_as_they_are(package: str) -> None:
    module = importlib.import_module(package)
    assert site_checks.public_names(package) == [f"{package}.{name}" for name in module.__all__]


def test_a_name_that_is_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings(tmp_path, names(), "", monkeypatch) == []
    for missing in ("chattn_cuda.accelerate", "chattn_cuda.restore"):
        path = site_checks.WHOLE_PATHS.get(missing, missing)
        (found,) = warnings(tmp_path, [n for n in names() if n != path], "", monkeypatch)
        assert found == f"{missing} is in no page of the reference"


@pytest.mark.parametrize(
    ("page", "fetches"),
    [
        ('<script src="https://example.org/x.js"></script>', True),
        ('<link rel="stylesheet" href="//example.org/x.css">', True),
        ('<link href="https://example.org/x.css" rel="stylesheet">', True),
        ('<img alt="" src="https://example.org/x.png">', True),
        ('<script src="assets/x.js"></script><link rel="next" href="x.html">', False),
        ('<a href="https://example.org">to read</a>', False),
    ],
)
def test_what_is_loaded_from_elsewhere_is_noticed(
    page: str, fetches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = warnings(tmp_path, names(), page, monkeypatch)
    assert ["loads from elsewhere" in text for text in found] == [True] * fetches


def test_whole_paths_are_those_of_functions_in_a_file_of_their_name() -> None:
    for name, path in site_checks.WHOLE_PATHS.items():
        package, _, last = name.rpartition(".")
        function = getattr(importlib.import_module(package), last)
        assert path == f"{function.__module__}.{function.__name__}"
