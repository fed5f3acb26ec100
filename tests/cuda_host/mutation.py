"""Changed copies of csrc/ and of the zoo: every barrier deleted in turn, and bugs planted by hand.

for mutant in [*barriers(CSRC), *engine.BUGS, *blocks.BUGS]:
    library = blocks.build(blocks.shown_by(mutant), mutant.apply())
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_host import build

CSRC = build.ROOT / "csrc"
ZOO = build.HERE / "zoo"
FOLDER = build.BUILD / "mutants"

BARRIER = re.compile(
    r"(?<!\w)(?:__syncthreads|__syncwarp|__threadfence|(?:cluster|grid)_sync\w*)\([^()]*\)"
)
#: the device API for nvcc: it makes the barriers out of instructions, and g++ does not compile it
NOT_COMPILED = ("device.cuh", "device_cuda.cuh", "device_grid.cuh")
#: what the runtime says of a fault: kernel, file and line, block and thread
PLACE = r"kernel \w+, [\w.]+:\d+, block \(.*\), thread \(.*\): "


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        name: Of the test.
        tree: The folder that is copied, CSRC or ZOO.
        file: The file, relative to the tree.
        old: The text to replace; the test fails if the file no longer holds it.
        new: What takes its place.
        noticed: A regular expression that the error must match.
        offset: Where `old` begins; None if it occurs once.
        shown_by: The block that must notice; None for the first whose kernels include the file.
    """

    name: str
    tree: Path
    file: str
    old: str
    new: str
    noticed: str
    offset: int | None = None
    shown_by: str | None = None

    def text(self) -> str:
        """The changed file."""
        source = (self.tree / self.file).read_text()
        at = self.offset
        if at is None:
            count = source.count(self.old)
            assert count == 1, (
                f"{self.file} holds {count} times, not once, the text that the mutant "
                f"{self.name!r} replaces; adapt tests/cuda_host/bugs/ or tests/cases/:\n{self.old}"
            )
            at = source.index(self.old)
        assert source.startswith(self.old, at), f"{self.file} has changed since the test began"
        return source[:at] + self.new + source[at + len(self.old) :]

    def apply(self) -> Path:
        """A copy of the tree with the change; the same place for the same contents."""
        return copy_of(self.tree, {self.file: self.text()})


def copy_of(tree: Path, changed: dict[str, str]) -> Path:
    """A copy of a tree with other contents of some files."""
    files = {str(p.relative_to(tree)): p for p in sorted(tree.rglob("*")) if p.is_file()}
    contents = {n: changed.get(n, "").encode() or p.read_bytes() for n, p in files.items()}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    target = FOLDER / f"{tree.name}-{digest.hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_name(target.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        for name, content in contents.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        partial.rename(target)
    target.touch()
    return target


def remove_old_copies() -> None:
    """Forget the copies that no test has asked for lately."""
    for path in FOLDER.glob("*-*") if FOLDER.exists() else ():
        if time.time() - path.stat().st_mtime > 24 * 3600:
            shutil.rmtree(path)


def in_csrc(
    name: str, file: str, old: str, new: str, noticed: str, shown_by: str | None = None
) -> Mutant:
    """A mutant of csrc/, for a text that occurs once in the file."""
    return Mutant(name, CSRC, file, old, new, noticed, shown_by=shown_by)


# ---- barriers -----------------------------------------------------------------------------------
def _without_comments(source: str) -> str:
    """The same length, with spaces for comments."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, source, flags=re.S)


def barriers(tree: Path, pattern: str = "**/*") -> list[Mutant]:
    """A mutant per barrier that the files of a tree hold."""
    found = []
    for path in sorted(tree.glob(pattern)):
        if path.suffix not in (".cu", ".cuh", ".h", ".cpp") or path.name in NOT_COMPILED:
            continue
        for match in BARRIER.finditer(_without_comments(source := path.read_text())):
            line = source.count("\n", 0, match.start()) + 1
            name = f"{path.parent.name}-{path.name}-{line}-{match[0].split('(')[0]}"
            file = str(path.relative_to(tree))
            # A block may also come to read what others have not written yet.
            place = rf"{PLACE}|which nothing has written|no kernel wrote"
            found.append(Mutant(name, tree, file, match[0], "(void)0", place, match.start()))
    return found
