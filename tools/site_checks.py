"""What `mkdocs build --strict` does not check of the site: a hook of mkdocs.yml.

Every public name of the package is in the reference, and no page loads anything from elsewhere.
"""

from __future__ import annotations

import ast
import logging
import re
import zlib
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.site_checks")  # strict mode counts its warnings
ROOT = Path(__file__).resolve().parent.parent
#: What users import from.
PARTS = ("functional", "modules", "models", "backends")
PACKAGES = ("chattn_cuda", *(f"chattn_cuda.{part}" for part in PARTS))
#: Functions in a file of the same name, for which mkdocstrings takes the file.
WHOLE_PATHS = {
    "chattn_cuda.accelerate": "chattn_cuda.convert.accelerate.accelerate",
    "chattn_cuda.decompositions": "chattn_cuda.ops.decompositions.decompositions",
    "chattn_cuda.models.se_inception": "chattn_cuda.models.se_inception.se_inception",
}
LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]+src=[\"']?(?:https?:)?//[^\s\"'>]+")
LINKED = re.compile(r"<link[^>]+href=[\"']?(?:https?:)?//[^\s\"'>]+")


def public_names(package: str) -> list[str]:
    """All of a package's ``__all__``, by reading it."""
    path = ROOT / package.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [f"{package}.{name}" for name in ast.literal_eval(node.value)]
    raise ValueError(f"{package} has no __all__")


def documented(inventory: bytes) -> set[str]:
    """The names in an ``objects.inv``, which mkdocstrings writes."""
    body = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    return {line.split(" ", 1)[0] for line in body.splitlines()}


def on_post_build(config: Any) -> None:
    """Warn of what is missing, and of what is fetched."""
    site = Path(config["site_dir"])
    known = documented((site / "objects.inv").read_bytes())
    for name in (name for package in PACKAGES for name in public_names(package)):
        if WHOLE_PATHS.get(name, name) not in known:
            log.warning("%s is in no page of the reference", name)
    for page in sorted(site.rglob("*.html")):
        text = page.read_text()
        for found in (*LOADED.findall(text), *LINKED.findall(text)):
            log.warning("%s loads from elsewhere: %s", page.relative_to(site), found)
