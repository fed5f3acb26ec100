"""What works with what: a table that the tests of this folder fill, and its text.

python -m tests.compat.features        prints docs/compatibility.md; --write writes it
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
MODULES = ("graphs", "precision", "training", "saving", "surgery", "runtime")
_Test = TypeVar("_Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Feature:
    """One line.

    Attributes:
        section: Its heading.
        tool: What users call it.
        answer: "yes", "plain" (works; the blocks run as plain PyTorch operations) or "no".
        note: What to know; for every "no" and "plain", why.
        test: Name of the test that shows it.
    """

    section: str
    tool: str
    answer: str
    note: str
    test: str


FEATURES: list[Feature] = []


def feature(section: str, tool: str, answer: str, note: str = "") -> Callable[[_Test], _Test]:
    """The decorated test shows one line of the table."""
    if answer not in ("yes", "plain", "no"):
        raise ValueError(f"unknown answer {answer!r}")
    if answer != "yes" and not note:
        raise ValueError(f"{tool}: {answer!r} needs a reason")

    def register(test: _Test) -> _Test:
        name = f"{test.__module__.rpartition('.')[2]}.py: {test.__name__}"
        FEATURES.append(Feature(section, tool, answer, note, name))
        return test

    return register


_HEAD = """# Compatibility

What can be done to a model whose blocks `chattn_cuda.accelerate` made fused, or that is built from
this package's modules. Every line is a test in `tests/compat/`, from which this file is made
(`python -m tests.compat.features --write`). "plain" means that it works, and that the blocks run as
plain PyTorch operations there, with the same numbers and at eager speed.
"""

_MODELS = """
## Models

`python -m chattn_cuda verify` compares these models with themselves, accelerated, in eval and train
mode: output, gradients and running statistics agree in float64 to 1e-9.

{models}.

And these, which have none: {plain}.

Blocks that `accelerate` knows by class: {classes}.

And, unless `fuse="block"` is given, the blocks around them, also those without attention: {tails}.

Two kinds of blocks it knows by what they consist of, whatever the class is called, where the
forward does that on a small map, and a copy with random weights gives the formula in float64:

| submodules | as in |
|---|---|
| `cSE` (pool, Conv2d, act, Conv2d, gate), `sSE` | `SCSEModule` of smp; `sSE` runs as it is |
| `_depthwise_conv`, `_se_reduce`, `_se_expand`, ... | `MBConvBlock` of lukemelas and smp |

Any other SE or ECA block it knows by what the forward does on a small map, whatever the names and
functions: a global mean (a pooling module, also one of a class of your own; `mean`, a `sum` over
the size, `einsum`, ...), one or two layers (Linear or 1x1 convolution, with a batch norm between or
none) or a convolution over the channels, a gate, a product, and perhaps a residual (`x + x * s`).
It looks into modules of other classes than torch's, leaves what does anything else, in eval or in
train mode, and tries the others out: in float64 on small maps, forward
and backward, in both modes; in float32 under `no_grad` on 9 samples of 33x34, on one of 8x9 in
channels_last (with more than 256 channels, on 9 of 8x9 and on one of 33x34) and on two of 1x1.
Blocks of one class that differ in widths alone share these, and each width runs in float64 on one
small map, in each mode that its code asks for. It does not matter what the caller has set: default
type and device, autocast, modes, warnings. A forward that changes at other types or sizes than
these is not told apart, and its assertions and warnings go with it.

What may change later is looked at in every call: the attributes that the forward reads, of the
module and of its layers; where it names parameters, which there are and their sizes; its methods,
and the functions that it calls of its own package and of
files that are not installed, with their code; the class, methods and attributes of each layer that
is not torch's. Other libraries' functions and torch's layers are taken to stay as they are.
Forwards are left that read a buffer, a list or the class of the module, a global object or an
attribute of a global module, class or function, a variable of the function around them, a default
that may change, numbers or strides of the map, whether autocast, gradients or inference mode are
on, or random numbers; that ask what a tensor is beside its numbers, sizes and type (its place in a
graph, its memory, its device, an attribute of it, whether it is a Parameter), for settings of the
process (of torch's backends, threads, compilers, the environment, the time), or whether something
raises; and those that print, log, write or save something, name a part of a profile,
or set a global or an attribute of anything. Maps of another rank, of other
channels or types than the operators take go to the module's own forward. So it knows the
`SELayer` of moskomule, mmpretrain and mmdet, MONAI's `ChannelSELayer` and `ResidualSELayer`, the
`SE` of pycls, the `SEModule` of pretrained-models and segmentation_models_pytorch, MobileOne's
`SEBlock`, BangguWu's `eca_layer`, and those with a `squeeze` and an `excitation`.

Left alone, and named in the report with what to do:

| what looks like a block, but | such as |
|---|---|
| squeezes otherwise | maximum, mean and maximum (CBAM), `AvgPool2d` of one size, another axis |
| has other weights | parameters of its own, LoRA, weight norm, groups, `Conv1d`, three layers |
| has another gate | softmax, `2 * sigmoid`, a hard sigmoid by hand, unknown activations |
| drops something | a dropout with p > 0 |
| returns something else | the gate alone, (map, gate) |
| is not alone | inside the forward of a residual block; a second gate of the map beside it |
| overrides `forward` | a subclass of a block known by its class |

The class of an accelerated module is a subclass with a name of its own, `AcceleratedSELayer`, so
that `isinstance` holds and a comparison of names does not. Where a call fails, ours raise TypeError
or ValueError with what was expected and given; PyTorch's own is often a RuntimeError.

An `MBConvBlock` computes SE inside its forward: it keeps that forward, which is shown a block
without SE, and SE runs before the projection.

[porting.md](porting.md) has ten lines that port what was left.
"""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def text() -> str:
    """The document."""
    from chattn_cuda.convert import ADAPTERS
    from chattn_cuda.convert.surroundings import PATHS
    from chattn_cuda.parity import FAMILIES, WITHOUT_ATTENTION

    for name in MODULES:
        importlib.import_module(f"tests.compat.test_{name}")
    # whatever order they were imported in
    rows = sorted(FEATURES, key=lambda f: MODULES.index(f.test.partition(".")[0][len("test_") :]))
    lines = [_HEAD]
    for section in dict.fromkeys(f.section for f in rows):
        lines += [f"## {section}\n", "| tool | works | to know | test |", "|---|---|---|---|"]
        lines += [
            f"| {f.tool} | {f.answer} | {f.note} | {f.test} |" for f in rows if f.section == section
        ]
        lines.append("")
    found = {
        "models": ", ".join(f.name for f in FAMILIES),
        "plain": ", ".join(f.name for f in WITHOUT_ATTENTION),
        "classes": _listed(set(ADAPTERS) - set(PATHS)),
        "tails": _listed(PATHS),
    }
    lines.append(_MODELS.format(**found).lstrip("\n"))
    return "\n".join(lines)


if __name__ == "__main__":
    # under its own name, where the tests register
    made = importlib.import_module("tests.compat.features").text()
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(made)
    else:
        print(made, end="")
