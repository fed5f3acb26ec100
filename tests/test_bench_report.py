"""tools/bench_report.py: every figure says where it is from, and no chart is empty or cut."""

from __future__ import annotations

import json
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
numpy = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_report  # noqa: E402
from report import charts, models  # noqa: E402
from report.charts import Chart  # noqa: E402
from report.results import PUBLISHED, Ratio, read_all  # noqa: E402

TITLES = [
    "Whole models", "Where a model's time goes", "Blocks", "Distance to the memory's floor",
    "Maps moved on CUDA", "Predicted for GPUs",
]  # fmt: skip
MODEL = "seresnet50 training, batch 8, nchw"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the committed results, and of a run that has every section."""
    out = tmp_path_factory.mktemp("report")
    results = out / "results"
    results.mkdir()
    write_parts(results / "parts-cpu.jsonl")
    arguments = ["--results", str(results), "--out", str(out), "--readme", str(out / "models.png")]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib's, of what has no room
        assert bench_report.main(arguments) == 0
    return out


def write_parts(path: Path) -> None:
    """What tools/bench_parts.py leaves, and a row with peak memory."""

    def times(ms: float, **more: float) -> dict[str, float]:
        return {"median": ms, "low": 0.9 * ms, "high": 1.1 * ms, "count": 5, **more}

    parts = ("convolutions", "norm, activation, addition", "attention blocks", "the rest")
    rows = {f"{MODEL}: {p}": {"eager": 10.0 + i, "accelerated": 9.0} for i, p in enumerate(parts)}
    rows[f"{MODEL}: fused tails"] = {"accelerated": 4.0}  # which only one of them has
    rows["se 8x256x56x56 float32 forward, nchw"] = {"copy": 1.0, "eager": 3.0, "cpu": 1.6}
    records: list[dict[str, object]] = [
        {"what": "conditions", "text": "a <machine> & a commit", "command": "a command"}
    ]
    for row, found in rows.items():
        named = {name: times(ms) for name, ms in found.items()}
        records.append({"what": "row", "table": "t", "row": row, "unit": "ms", "times": named})
    remembered = {"eager": times(1.0, gib=2.0), "accelerated": times(1.5, gib=1.5)}
    records.append({"what": "row", "table": "t", "row": MODEL, "unit": "ms", "times": remembered})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def page(folder: Path) -> ElementTree.Element:
    """The page, which is well-formed XML, too."""
    text = (folder / "index.html").read_text()
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


class Nesting(HTMLParser):
    """Notes tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def tag_of(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def all_of(page: ElementTree.Element, tag: str) -> list[ElementTree.Element]:
    return [element for element in page.iter() if tag_of(element) == tag]


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def test_sections_are_in_order(page: ElementTree.Element) -> None:
    assert [text_of(h) for h in all_of(page, "h2")] == TITLES
    levels = [int(tag_of(e)[1]) for e in page.iter() if re.fullmatch(r"h\d", tag_of(e))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_it_is_one_well_formed_file(folder: Path, page: ElementTree.Element) -> None:
    text = (folder / "index.html").read_text()
    parser = Nesting()
    parser.feed(text)
    parser.close()
    assert not parser.open and not parser.wrong
    ids = [e.attrib["id"] for e in page.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    links = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', text)
    assert links and all((a or b).startswith("#") for a, b in links)
    assert {(a or b)[1:] for a, b in links} <= set(ids)
    assert len(text) < 1_500_000
    assert "<script" not in text and "@import" not in text and str(ROOT) not in text


def test_charts_have_words_tables_and_one_kind(page: ElementTree.Element) -> None:
    figures = all_of(page, "figure")
    assert len(figures) > 15
    for figure in figures:
        (drawing,) = all_of(figure, "svg")
        assert drawing.attrib["role"] == "img" and len(drawing.attrib["aria-label"]) > 60
        assert len(all_of(drawing, "path")) + len(all_of(drawing, "use")) > 5
        (table,) = all_of(figure, "table")
        assert all_of(table, "caption") and all_of(table, "td")
        assert {th.attrib["scope"] for th in all_of(table, "th")} == {"col", "row"}
        widths = {len(list(row)) for row in all_of(table, "tr")}
        assert len(widths) == 1, text_of(table)
    assert not [image for image in all_of(page, "img") if not image.attrib.get("alt")]
    for section in all_of(page, "section"):
        kinds = [text_of(e) for e in section.iter() if e.attrib.get("class") == "kind"]
        title = text_of(all_of(section, "h2")[0])
        expected = {"Maps moved on CUDA": "counted", "Predicted for GPUs": "predicted"}
        assert set(kinds) == {expected.get(title, "measured")}, title


def test_figures_say_where_they_are_from(page: ElementTree.Element) -> None:
    sources = [text_of(e) for e in page.iter() if e.attrib.get("class") == "source"]
    assert any("a <machine> & a commit; by a command. Spreads: quartiles" in s for s in sources)
    committed = [s for s in sources if "came with the repository" in s and s.startswith("measured")]
    assert len(committed) >= 4
    for source in committed:
        assert re.search(r"torch \d.*chattn_cuda \S+ \([0-9a-f]{7,}\+?\).*; by python ", source)
    ratios = [text_of(td) for td in all_of(page, "td") if re.match(r"[\d.]+x", text_of(td))]
    assert len(ratios) > 100
    assert all(re.match(r"[\d.]+x \([\d.]+–[\d.]+\)", ratio) for ratio in ratios)
    assert "0.67x (0.55–0.81) slower" in ratios  # losses are told


def pixels(path: Path) -> numpy.ndarray:
    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB"))


def test_no_picture_is_empty_or_cut(folder: Path, page: ElementTree.Element) -> None:
    paths = sorted(folder.glob("*.png"))
    assert len(paths) == len(all_of(page, "figure")) + 1
    for path in paths:
        drawn = (pixels(path) != 255).any(axis=2)
        edges = drawn[:3].any(), drawn[-3:].any(), drawn[:, :3].any(), drawn[:, -3:].any()
        assert not any(edges), f"{path.name} is cut"
        assert drawn.mean() > 0.01, f"{path.name} is empty"
        colours = {tuple(c) for c in pixels(path)[drawn][::7]}
        ours = tuple(bytes.fromhex(charts.COLOURS["ours"][1:]))
        assert ours in colours, f"{path.name} has none of our figures"


def test_a_cut_picture_is_noticed(tmp_path: Path) -> None:
    """What the test above asks for is not so of these, or is a warning."""
    figures = {"row": {"cpu": Ratio(2, 1, 3)}}
    path = charts.png(Chart("w" * 200, "axis", figures, "dots"), tmp_path / "a.png", "note")
    assert (pixels(path)[:, -3:] != 255).any()
    figures = {"a row's name that is too long for a phone " * 4: {"cpu": Ratio(2, 1, 3)}}
    with pytest.warns(UserWarning, match="collapsed"):
        charts.png(Chart("title", "axis", figures), tmp_path / "b.png", "note")


def test_what_is_missing_names_its_command(tmp_path: Path) -> None:
    found = bench_report.sections([])
    assert [section.title for section in found] == TITLES
    missing = [part.missing for section in found for part in section.parts if part.missing]
    assert len(missing) == 5
    commands = ("make bench</", "make bench-models</", "bench_parts.py</", "model_memory.py</")
    for command in commands:
        assert any(command in text for text in missing)
    committed = bench_report.sections(read_all([PUBLISHED]))
    assert not [part for part in committed[0].parts if part.missing]


def test_memory_is_no_time(tmp_path: Path) -> None:
    """Its rows are in a part of their own, and in no chart of times."""
    (memory,) = (r for r in read_all([PUBLISHED]) if r.name == "memory-cpu")
    assert memory.rows and not any(row.of_model for row in memory.rows)
    assert not memory.source.spread
    (part,) = models._memory_parts([memory])
    (exhibit,) = part.exhibits
    assert exhibit.chart.variants == ["eager", 'fuse="block"', 'fuse="tail"']
    assert len(exhibit.table.rows) == len(memory.rows) == 7
    assert not [p for p in models.section([memory]).parts if p.exhibits and p != part]


def test_predictions_are_of_all_models_and_gpus() -> None:
    part = bench_report.sections([])[-1].parts[1]
    assert [len(e.table.rows) for e in part.exhibits] == [28, 28]  # 7 models, 4 GPUs
    for exhibit in part.exhibits:
        assert exhibit.chart.variants[:2] == ["eager", "torch.compile"]
        assert "predicted" in exhibit.chart.axis and "predicted" in exhibit.table.caption


def test_a_ratio_has_the_ends_of_both_spreads() -> None:
    from gpu_results import Times

    ratio = Ratio.of(Times(10, 9, 12, 5), Times(8, 6, 9, 5))
    assert (ratio.value, ratio.low, ratio.high) == (1.25, 1.0, 2.0)
    assert not ratio.clear and not ratio.slower
    assert Ratio.of(Times(8, 7, 8.5, 5), Times(10, 9, 11, 5)).slower
