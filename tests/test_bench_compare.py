"""bench/compare.py: what counts as faster, slower, and neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import compare

HEAD = {"what": "conditions", "text": "a machine", "command": "a command"}


def write(path: Path, rows: dict[str, dict[str, tuple[float, float, float]]]) -> Path:
    """Results of models: (median, low, high) by row and variant."""
    records = [HEAD]
    for row, times in rows.items():
        named = {
            name: {"median": m, "low": low, "high": high, "count": 9}
            for name, (m, low, high) in times.items()
        }
        records.append({"what": "row", "table": "models", "row": row, "unit": "ms", "times": named})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def section(text: str, title: str) -> list[str]:
    """The lines below a title."""
    lines = text.split(f"{title} beyond the spread: ")[1].split("\n\n")[0].splitlines()
    return lines[1:]


def test_only_what_is_beyond_the_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, other, gone = (f"net{i} training, batch 8, nchw" for i in range(3))
    old = {
        row: {"eager": (100, 95, 105), "accelerated": (90, 88, 92), "both": (50, 49, 51)},
        other: {"eager": (10, 9, 11), "accelerated": (10, 9, 11)},
        gone: {"eager": (1, 1, 1)},
    }
    new = {
        row: {"eager": (101, 96, 106), "accelerated": (80, 78, 87), "both": (60, 52, 61)},
        other: {"eager": (10, 9, 11), "accelerated": (12, 10, 13)},
    }
    paths = [write(tmp_path / f"{k}.jsonl", v) for k, v in (("old", old), ("new", new))]
    assert compare.main(list(map(str, paths))) == 0
    out = capsys.readouterr().out
    (slower,), (faster,) = section(out, "slower"), section(out, "faster")
    assert slower.startswith("0.83x  net0, training, batch 8, nchw, both: 50 (49 to 51)")
    assert faster.startswith("1.12x  net0") and "accelerated" in faster
    assert "within the spread: 3 of 5" in out  # net1 is 0.83x, too, and its spreads overlap
    assert "(the machine and torch): 1.00x, 2 rows" in out
    assert "only in the old run: 1\nnet2" in out and "only in the new" not in out


def test_the_committed_results_equal_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    from report.results import PUBLISHED

    assert compare.main([str(PUBLISHED), str(PUBLISHED)]) == 0
    out = capsys.readouterr().out
    assert "slower beyond the spread: nothing" in out and "faster beyond the spread: nothing" in out
    assert "only in" not in out and "seresnet50" not in out


@pytest.mark.parametrize("content", ["", '{"what": "row"}\n', None])
def test_what_is_no_result(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "models.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=r"models\.jsonl"):
        compare.main([str(path), str(path)])
