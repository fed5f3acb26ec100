from __future__ import annotations

import pytest

pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from tests.compat import features  # noqa: E402


def test_document_is_up_to_date() -> None:
    assert features.DOCUMENT.read_text() == features.text(), (
        "run: python -m tests.compat.features --write"
    )


def test_every_line_has_a_test_that_pytest_finds() -> None:
    features.text()
    names = [f.test for f in features.FEATURES]
    assert len(names) == len(set(names)) > 20
    assert all(": test_" in name for name in names)


def test_no_answer_without_a_reason() -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        features.feature("s", "t", "no")
    with pytest.raises(ValueError, match="unknown answer"):
        features.feature("s", "t", "maybe")
