"""What is shipped: the sdist builds elsewhere, the wheel is complete, the binary is portable."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from chattn_cuda import _native
from tests.cuda_host import build, operators

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import wheel_check  # noqa: E402

TOOLS = ("build", "setuptools", "wheel")


def run(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def binary() -> Path:
    module = _native.module()
    if module is None or module.__file__ is None:
        pytest.skip("the native module was not built")
    return Path(module.__file__)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout")
    for tool in TOOLS:
        pytest.importorskip(tool)
    out = tmp_path_factory.mktemp("sdist")
    run(
        sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, ROOT, cwd=out
    )  # fmt: skip
    (archive,) = out.glob("*.tar.gz")
    return archive


def test_sdist_holds_all_sources(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {
        str(f.relative_to(ROOT))
        for pattern in ("csrc/**/*", "chattn_cuda/**/*.py", "tests/**/*.py", "setup.py", "LICENSE")
        for f in ROOT.glob(pattern)
        if f.is_file() and "__pycache__" not in f.parts
    }
    assert wanted <= held, f"missing: {sorted(wanted - held)}"
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


@pytest.fixture(scope="module")
def source(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked; what is compiled there is compiled once."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


# Optimised, for a wheel's size: -O1 takes as long to compile as -O0, and makes a quarter of it.
FAST = {"CHATTN_BUILD_CUDA": "0", "CXXFLAGS": "-O1"}


@pytest.mark.slow
def test_wheel_from_the_sdist(source: Path, tmp_path: Path) -> None:
    text = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", source, cwd=tmp_path, **FAST
    )
    assert "CUDA kernels not included: CHATTN_BUILD_CUDA=0" in text
    (wheel,) = (source / "dist").glob("*.whl")
    assert "-cp310-abi3-linux_" in wheel.name
    # That it has no manylinux tag yet is all.
    assert wheel_check.problems(wheel) == ["no manylinux tag"]
    runs_from(tmp_path / "site", [sys.executable, "-m", "pip", "install", wheel])


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["uv", "git"])
def test_other_ways_to_install(source: Path, tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool}")
    pip, what = [sys.executable, "-m", "pip"], str(source)
    if tool == "git":
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "all"]):
            run("git", *words, cwd=source)
        what = f"git+file://{source}"
    else:
        pip = ["uv", "pip"]
    runs_from(tmp_path / "site", [*pip, "install", "--no-build-isolation", what], **FAST)


def runs_from(site: Path, install: list[str | Path], **env: str) -> None:
    run(*install, "--no-deps", "--target", site, cwd=site.parent, **env)
    code = (
        "import chattn_cuda, torch; m = chattn_cuda.SqueezeExcite(16, backend='cpu');"
        "m(torch.randn(2, 16, 5, 5)).sum().backward(); print(chattn_cuda.__file__)"
    )
    where = run(sys.executable, "-c", code, cwd=site.parent, PYTHONPATH=str(site))
    assert str(site) in where


def a_wheel(path: Path, changed: dict[str, bytes | None]) -> Path:
    """With the files that it must have, but for those that are changed."""
    names = [str(file.relative_to(ROOT)) for file in ROOT.glob("chattn_cuda/**/*.py")]
    names += ["chattn_cuda/py.typed", "chattn_cuda/_C.abi3.so", "chattn_cuda-1.0.dist-info/WHEEL"]
    held: dict[str, bytes | None] = {**dict.fromkeys(names, b""), **changed}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            if data is not None:
                archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"chattn_cuda/_C.abi3.so": b".nv_fatbin" + bytes(5_000_000)}, None),
        ({"chattn_cuda/_C.abi3.so": b".nv_fatbin" + bytes(21_000_000)}, "larger than 20 MB"),
        ({"chattn_cuda/_C.abi3.so": bytes(3_000_000)}, "larger than 3 MB"),
        ({"chattn_cuda/py.typed": None}, "it lacks ['chattn_cuda/py.typed']"),
        ({"tests/bits.py": b""}, "it has ['chattn_cuda', 'tests']"),
        ({"chattn_cuda.libs/libgomp.so.1": b""}, "it has ['chattn_cuda', 'chattn_cuda.libs']"),
    ],
)
def test_what_a_wheel_must_be(
    changed: dict[str, bytes | None], problem: str | None, tmp_path: Path
) -> None:
    wheel = a_wheel(tmp_path / "chattn_cuda-1.0-cp310-abi3-manylinux_2_28_x86_64.whl", changed)
    found = [text for text in wheel_check.problems(wheel) if "libraries" not in text]
    assert found == ([problem] if problem else [])


@pytest.mark.parametrize(
    ("archs", "flags", "built"),
    [
        ("8.6", ["compute_86,code=[sm_86]"], "8.6"),
        (
            "7.5 8.0 8.9 9.0 10.0 12.0+PTX",
            [
                "compute_75,code=[sm_75]",
                "compute_80,code=[sm_80,sm_89]",
                "compute_90,code=[sm_90,sm_100]",
                "compute_120,code=[sm_120,compute_120]",
            ],
            "7.5 8.0 8.9 9.0 10.0 12.0+PTX",
        ),
        (
            "8.9+PTX 9.0a 8.0",
            ["compute_80,code=[sm_89,sm_80,compute_80]", "compute_90a,code=[sm_90a]"],
            "8.9 9.0a 8.0+PTX",
        ),
    ],
)
def test_one_ptx_serves_a_kind_of_devices(archs: str, flags: list[str], built: str) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout")
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")
    assert setup["gencode"](archs.split()) == [f"-gencode=arch={flag}" for flag in flags]
    assert " ".join(setup["built_architectures"](archs.split())) == built


def test_binary_uses_only_the_stable_abi() -> None:
    assert binary().name == "_C.abi3.so" or sysconfig.get_config_var("Py_GIL_DISABLED")
    for tool in ("nm", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    symbols = run("nm", "-DC", "--undefined-only", binary(), cwd=ROOT)
    unstable = [s for s in symbols.splitlines() if " at::" in s or " c10::" in s]
    assert not unstable, unstable
    needed = run("readelf", "-d", binary(), cwd=ROOT)
    for library in ("libtorch_cuda", "libtorch_python", "libcuda.so", "libcudart"):
        assert library not in needed, f"{library} must not be needed to import the module"


def test_instruction_sets_share_no_inline_function() -> None:
    """Otherwise the linker may keep the AVX-512 copy of a function that the baseline calls."""
    objects = sorted(ROOT.glob("build/temp*/csrc/engine_cpu_kernels.cpp.*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("no object files of a build in place")
    for obj in objects:
        isa = obj.name.split(".")[-2]
        weak = [
            line.split(maxsplit=2)[-1]
            for line in run("nm", "-C", obj, cwd=ROOT).splitlines()
            if " W " in line or " V " in line or " u " in line
        ]
        foreign = [name for name in weak if f"chattn::{isa}::" not in name]
        assert not foreign, f"{obj.name}: {foreign}"


def test_operators_compile_with_the_headers_of_this_torch(tmp_path: Path) -> None:
    """Those that launch CUDA kernels too; with another torch nothing else compiles them."""
    cxx = build.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    flags, _ = build.torch_flags()
    sources = sorted((ROOT / "csrc" / "blocks").glob("*/op*.cpp"))
    assert len(sources) >= 3
    for source in sources:
        run(
            cxx, "-std=c++20", "-fsyntax-only", "-DCHATTN_WITH_CUDA", f"-I{ROOT / 'csrc'}", *flags,
            source, cwd=tmp_path,
        )  # fmt: skip


def test_tests_know_the_types_that_kernels_are_compiled_for() -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("not a source checkout")
    assert runpy.run_path(str(ROOT / "setup.py"))["MAP_TYPES"] == operators.TYPES


def test_asking_registers_nothing() -> None:
    """Triton's operators are there once they are selected."""
    code = (
        "import sys; from chattn_cuda import backends;"
        "from chattn_cuda.ops.registration import registered_namespaces as known;"
        "reason = backends.why_not('triton', 'cpu');"
        "before = 'triton' in sys.modules or 'chattn_cuda_triton' in known;"
        "reason or backends.select('triton', 'cpu');"
        "print(before, reason is not None or 'chattn_cuda_triton' in known)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_import_is_light() -> None:
    """torch._dynamo and triton take seconds to import, and not every user needs them."""
    code = (
        "import sys, torch; before = set(sys.modules); import chattn_cuda;"
        "print(sorted({'torch._dynamo', 'triton', 'timm', 'rich'} & (set(sys.modules) - before)))"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).splitlines()[-1] == "[]"
