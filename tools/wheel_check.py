"""Is a wheel complete, small and usable with these releases of torch? The end of `make wheel`.

    python tools/wheel_check.py dist/*.whl --torch torch==2.11.0,torchvision==0.26.0

Each --torch gets a fresh environment, and so does the torch that is here. An environment has the
wheel, installed by pip, and its torch; what torch needs besides is linked from where this runs.
tools/wheel_smoke.py runs there with nothing else on PATH.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEGABYTES = {"with CUDA kernels": 20, "without CUDA kernels": 3}
# Linked from here only with the torch that they belong to; the tools of the build never.
OF_TORCH = ("torch", "torchvision", "functorch", "torchgen", "triton")
TOOLS = ("pip", "setuptools", "wheel", "chattn_cuda", "pybind11", "ninja")


def name_of(entry: Path) -> str:
    """The package that a file or folder in site-packages belongs to."""
    return re.split(r"[-.]", entry.name)[0]


def problems(wheel: Path) -> list[str]:
    """What is wrong with the file."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    binaries = [name for name in held if ".so" in Path(name).suffixes]
    cuda = any(b".nv_fatbin" in held[name] for name in binaries)
    kind = "with CUDA kernels" if cuda else "without CUDA kernels"
    size, limit = wheel.stat().st_size / 1e6, MEGABYTES[kind]
    print(f"{wheel.name}: {size:.2f} MB, {kind} (at most {limit} MB)")
    sources = {str(f.relative_to(ROOT)) for f in ROOT.glob("chattn_cuda/**/*.py")}
    wanted = {*sources, "chattn_cuda/py.typed", "chattn_cuda/_C.abi3.so"}
    packages = {name.split("/")[0].split("-")[0] for name in held}
    found = {
        f"larger than {limit} MB": size >= limit,
        f"it lacks {sorted(wanted - held.keys())}": wanted - held.keys(),
        f"it has {sorted(packages)}": packages != {"chattn_cuda"},
        f"libraries: {binaries}": binaries != ["chattn_cuda/_C.abi3.so"],
        "no manylinux tag": "-manylinux" not in wheel.name,
    }
    return [text for text, wrong in found.items() if wrong]


def torch_folder(packages: list[str]) -> Path:
    """Where a torch lies unpacked, for the next time, too."""
    folder = ROOT / "build/wheel-torch" / "-".join(packages).replace("==", "")
    if not (folder / ".complete").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(folder), *packages], check=True)
        (folder / ".complete").touch()
    return folder


def environment(packages: list[str], wheel: Path) -> Path:
    """A new one with a wheel; its Python."""
    home = ROOT / "build/wheel-env" / ("-".join(packages).replace("==", "") or "torch-here")
    venv.create(home, clear=True, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    here = Path(sysconfig.get_path("purelib"))
    linked = list(torch_folder(packages).iterdir()) if packages else []
    left = (*TOOLS, *(OF_TORCH if packages else ()), "__editable__", "__pycache__", "")
    linked += [entry for entry in here.iterdir() if name_of(entry) not in left]
    for entry in linked:
        if entry.suffix != ".pth" and entry.name != "bin":
            (site / entry.name).symlink_to(entry)
    python = home / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True, env=surroundings(python))
    return python


def surroundings(python: Path) -> dict[str, str]:
    """Environment variables: nothing is found but what an environment has."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    return {**kept, "PATH": str(python.parent)}


def smoke(python: Path) -> dict[str, str]:
    """What tools/wheel_smoke.py said; "failed" where it ended with an error."""
    done = subprocess.run(
        [python, ROOT / "tools/wheel_smoke.py"],
        cwd=python.parent,
        env=surroundings(python),
        capture_output=True,
        text=True,
    )
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    if done.returncode:
        print(done.stdout + done.stderr)
        said["failed"] = (done.stderr.splitlines() or ["no message"])[-1]
    return said


def main() -> int:
    """Returns 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", action="append", default=[], type=lambda s: s.split(","))
    arguments = parser.parse_args()
    wrong = problems(arguments.wheel)
    columns = ["python", "torch", "compilers on PATH", "forward, backward", "accelerate"]
    columns += ["compile", "doctor"]
    rows = [columns]
    for packages in [*arguments.torch, []]:
        asked = " ".join(packages) or f"torch {importlib.metadata.version('torch')}"
        said = smoke(environment(packages, arguments.wheel))
        if "failed" in said:
            wrong.append(f"{asked}: {said['failed']}")
        rows.append([said.get(column, "failed") for column in columns])
    for cells in zip(*rows, strict=True):  # an environment is a column
        widths = [max(map(len, row)) for row in rows]
        print("  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip())
    for text in wrong:
        print(f"wrong: {text}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
