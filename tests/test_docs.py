"""The documents name files and folders that are there; their code runs and prints what they say."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import chattn_cuda
from chattn_cuda import _native

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TREES = "csrc|chattn_cuda|tests|tools|bench|docs|examples"
PATH = re.compile(rf"(?<![\w/.:-])(?:{TREES})/[\w./*<>{{}},-]*")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
#: Python, and what it prints where a block of text follows at once
CODE = re.compile(r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
WITH_CODE = [document for document in DOCUMENTS if CODE.search(document.read_text())]
#: what readers of these have already
GIVEN = {
    "README.md": """
import torch.nn.functional as F
x, w1, b1 = torch.randn(2, 256, 8, 8), torch.randn(16, 256), torch.randn(16)
w2, b2 = torch.randn(256, 16), torch.randn(256)
""",
    "docs/porting.md": """
import timm
from tests.peers import SELayer
model = timm.create_model("resnet18")
for block in (*model.layer1, *model.layer2):
    block.se = SELayer(block.conv2.out_channels)
checkpoint = model.state_dict()
""",
}
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


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_paths_lead_somewhere(document: Path) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout")
    assert missing(document.read_text(), document.parent) == []


def test_a_folder_that_went_is_missed() -> None:
    text = "`chattn_cuda/ops/`, csrc/blocks/{sk,gone}/*.cu, csrc/none/, [x](docs/none.md)"
    assert missing(text, ROOT) == ["csrc/blocks/gone/*.cu", "csrc/none/", "docs/none.md"]


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder; without the compiler of torch.compile, which takes a minute a model."""
    for library in ("timm", "torchvision", "onnxscript"):
        pytest.importorskip(library)
    if _native.why_not_cpu() is not None:
        pytest.skip("needs the CPU kernels")
    monkeypatch.chdir(tmp_path)
    one_process = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 0}
    for variable, value in one_process.items():  # as torchrun sets them
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("document", WITH_CODE, ids=name)
@pytest.mark.usefixtures("quickly")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_code_runs_and_prints_what_is_said(document: Path) -> None:
    names: dict[str, Any] = {"torch": torch, "__name__": "document"}
    exec(GIVEN.get(name(document), ""), names)
    torch.manual_seed(0)
    run(document.read_text(), names)


def run(text: str, names: dict[str, Any]) -> None:
    """The code of a document, block by block."""
    for found in CODE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + found[1], "document", "exec"), names)
        if found[2] is not None:
            assert printed.getvalue() == found[2], f"line {line}"


def test_code_that_prints_something_else_is_noticed() -> None:
    text = "```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n{}\n```\n"
    run(text.format(1), {})
    with pytest.raises(AssertionError, match="line 5"):
        run(text.format(2), {})


def test_figures_are_those_of_the_published_results() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    import bench_models
    import model_gains

    for (page, section), text in model_gains.sections().items():
        document = (ROOT / "docs" / f"{page}.md").read_text()
        begin, end = bench_models.marks(section)
        shown = document.partition(begin)[2].partition(end)[0]
        assert shown == f"\n{text}", "run: python tools/model_gains.py"


def test_tables_of_tails(tmp_path: Path) -> None:
    """By the files that `make bench` leaves."""
    pytest.importorskip("timm")
    sys.path.insert(0, str(ROOT / "tools"))
    import model_gains

    from chattn_cuda.cli.cases import DIRECTIONS, Row
    from chattn_cuda.cli.environment import environment
    from chattn_cuda.cli.measure import Entry, Result
    from chattn_cuda.cli.report import Report

    made = [
        Result(
            Row("tail_a", (8, c, 2, 2), "channels_last", way),
            {
                "eager": Entry([10.0] * 2),
                "torch.compile": Entry([5.0] * 2),
                "cpu": Entry([10.0 / fast] * 2),
            },
        )
        for way, factor in zip(DIRECTIONS, (1, 2), strict=True)
        for c, fast in ((4, 2.0 * factor), (8, 8.0 * factor))
    ]
    Report(made, environment("cpu"), "a command").write(tmp_path)
    paths = [tmp_path / f"{name}-cpu.csv" for name in model_gains.TAILS]
    text = model_gains.of_tails(paths)
    assert "by `a command`" in text
    means = "**4.00x** (2.00) | **2.00x** (1.00) | **8.00x** (4.00) | **4.00x** (2.00)"
    assert f"+ ReLU | channels_last | {means} |" in text
    assert "nchw | not measured | not measured" in text
    assert "| 8 x 8 x 2 x 2 | 10 | 5 | 0.625 | 16.00x | 8.00x |" in text
    assert "make bench" in model_gains.of_tails(paths[1:])


@pytest.mark.parametrize("form", ["bug", "slow", "block"])
def test_issue_forms_ask_for_doctor(form: str) -> None:
    yaml = pytest.importorskip("yaml")
    asked = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())["body"]
    (doctor,) = (field for field in asked if field["id"] == "doctor")
    assert doctor["attributes"]["label"] == "`python -m chattn_cuda doctor`"
    assert doctor["validations"]["required"] is True


def test_citation_is_of_this_version() -> None:
    assert f"\nversion: {chattn_cuda.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(document: Path) -> None:
    assert not re.search(r"@@|TODO|FIXME|TBD", document.read_text())
