"""What a module's forward does with a small map: a recording of its operations.

Every tensor that depends on the map has a state: still a map, squeezed (partly, or to a number per
channel), the gate that layers made of that, or the map times the gate. What an operation is follows
from these and from sizes, so that it does not matter which of torch's many names was called.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chattn_cuda import activations
from chattn_cuda.convert import probe
from chattn_cuda.methods import is_fixed, modes_of

__all__ = [
    "CONTAINERS",
    "DROPOUTS",
    "LAYERS",
    "NEUTRAL",
    "NORMS",
    "RESHAPES",
    "Recording",
    "record",
]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
DROPOUTS = (nn.Dropout, nn.Dropout2d)
#: With the settings that the shape depends on.
RESHAPES: dict[type, tuple[str, ...]] = {
    nn.Flatten: ("start_dim", "end_dim"),
    nn.Unflatten: ("dim", "unflattened_size"),
}
NEUTRAL = (nn.Identity, *RESHAPES, *DROPOUTS)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_MAP, _PARTLY, _SQUEEZED, _GATE, _SCALED = range(5)

#: By the names of functions; "=" is before that of an activation.
_PRODUCTS = frozenset("mul mul_ multiply multiply_ __mul__ __rmul__ __imul__ einsum".split())
_QUOTIENTS = frozenset("div div_ divide true_divide __truediv__ __div__".split())
_SUMS = frozenset("add add_ __add__ __radd__ __iadd__".split())
_MATRICES = frozenset(
    """
    linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d bilinear matmul __matmul__
    __rmatmul__ mm bmm addmm baddbmm addbmm einsum tensordot inner
    """.split()
)
_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((torch.relu_, Tensor.relu, Tensor.relu_), "=relu"),
    **dict.fromkeys((Tensor.sigmoid, Tensor.sigmoid_, torch.sigmoid_), "=sigmoid"),
    **dict.fromkeys((Tensor.tanh, Tensor.tanh_), "=tanh"),
    **{function: f"={name}" for function, name in activations._FUNCTIONS.items()},
}
#: What tells of a tensor that is looked at before the operators run. Anything else, such as numbers
#: or strides, may be the reason for a forward to do something else.
_SIZES = frozenset(
    """
    shape size dim ndim ndimension numel nelement __len__ dtype device is_floating_point is_complex
    """.split()
)
#: What changes no number of its input.
_REARRANGING = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten squeeze squeeze_ unsqueeze unsqueeze_ t T mT
    permute transpose movedim moveaxis swapaxes swapdims expand expand_as broadcast_to contiguous
    clone to type type_as float double __getitem__
    """.split()
)
#: What modules of one's own do that are an activation: mmcv's HSigmoid, Swish.
_COMPOSED = {
    (("number", "adds 3"), ("number", "divides by 6"), ("other", "clamp")): "=hard_sigmoid",
    (("act", "=sigmoid"), ("other", "mul")): "=silu",
}


class Recording(NamedTuple):
    """What a forward did.

    Attributes:
        events: Kinds, each with the path of a submodule, "=name" of a function, or a name: "pool",
            "layer", "norm", "act", "mul" (by the gate), "add" (of the map); "conv" is a layer on
            the map, "number" a factor, and "other" anything else, with "=" what was only read.
        returned: "scaled", "gate", "tuple" or "other".
        axes: Of the map: "NCHW", "NCL" or "NHWC".
    """

    events: list[tuple[str, str]]
    returned: str
    axes: str


@probe.undisturbed
def record(module: Any) -> list[Recording]:
    """Run the forward, of a copy, on a small map: in eval mode, and in train mode if it asks.

    Raises:
        Exception: It fails there.
    """
    modes = modes_of(module)
    with torch.no_grad():
        copy = probe.plain_copy(module, _numbers)
        first: Exception | None = None  # of the map that is most usual
        for axes, shape in _shapes(copy):
            try:
                return [_record(copy.train(mode), axes, shape) for mode in modes]
            except Exception as failed:
                first = first or failed
    raise first or ValueError("it has no layer")


def _record(module: Any, axes: str, shape: tuple[int, ...]) -> Recording:
    x = torch.randn(2, *shape, dtype=torch.float64)
    recorder = _Recorder(module, x, axes.index("C"))
    try:
        with recorder:
            y = module(x)
    finally:
        recorder.remove()
    return Recording(recorder.events, recorder.returned(y), axes)


def features(layer: Any) -> tuple[int, int]:
    """How many numbers one of `LAYERS` takes and gives, at each position."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _numbers(shape: Any) -> Tensor:
    """Parameters: which numbers they are makes no difference."""
    return torch.full((1,) * len(shape), 0.5, dtype=torch.float64).expand(shape)


def _shapes(module: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Maps that it may take, without N: the usual ones first."""
    layers = [m for m in module.modules() if isinstance(m, LAYERS)]
    if not layers:  # C is one of the sizes of the largest matrix
        counts = sorted(max(module.parameters(), key=Tensor.numel).squeeze().shape, reverse=True)
    else:
        counts = [features(layers[0])[0], features(layers[-1])[1]]
    windows = [m.kernel_size for m in module.modules() if isinstance(m, nn.AvgPool2d)]
    plane = nn.modules.utils._pair(windows[0]) if windows else probe.sizes(module)[0]
    if not windows and any(isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1 for m in layers):
        plane = probe.LARGER[0]
    for count in dict.fromkeys(counts):
        channels = 16 if count == 1 else count  # of a convolution over channels, any
        yield "NCHW", (channels, *plane)
        yield "NCL", (channels, 6)
        yield "NHWC", (3, 2, channels)


class _Recorder(TorchFunctionMode):
    """Keeps the events of one call."""

    def __init__(self, module: Any, x: Tensor, axis: int) -> None:
        super().__init__()
        self.events: list[tuple[str, str]] = []
        self.inside = 0  # calls of modules that count as one
        self.axis = axis
        self.squeezed = x.shape[0] * x.shape[axis]
        self.states = {id(x): _MAP}
        self.kept = [x]  # so that no other tensor gets its id
        self.owners: dict[int, str] = {}
        self.handles = []
        self.starts: list[int] = []  # of the events in modules of one's own
        for path, m in module.named_modules():
            self.owners |= {id(p): path or f"={name}" for name, p in m._parameters.items()}
            enter, leave = self.enter, self.leave
            if not path or not _counts_as_one(m):
                if not path or m._modules or m._parameters or isinstance(m, CONTAINERS):
                    continue
                enter, leave = self.enter_own, self.leave_own
            self.handles.append(m.register_forward_pre_hook(enter))
            self.handles.append(m.register_forward_hook(functools.partial(leave, path)))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()

    def enter(self, module: Any, inputs: Any) -> None:
        self.inside += 1

    def leave(self, path: str, module: Any, inputs: Any, output: Any) -> None:
        self.inside -= 1
        given, made = list(_tensors(inputs)), list(_tensors(output))
        states = self._states(given)
        if self.inside or not states or not made:
            return
        state = max(states)
        if isinstance(module, NORMS):
            self._keep(made, state, "norm", path)
        elif isinstance(module, NEUTRAL):
            self._keep(made, state)
        elif isinstance(module, LAYERS):
            self._layer(made, state, path)
        elif len(states) > 1:
            self._together("", given, states, made)
        elif not self._squeeze(given[0], made, state, path):
            self._keep(made, state, "act", path)

    def enter_own(self, module: Any, inputs: Any) -> None:
        self.starts.append(len(self.events))

    def leave_own(self, path: str, module: Any, inputs: Any, output: Any) -> None:
        """Of an activation, of which the kernels may know the name, make one event."""
        start = self.starts.pop()
        known = _COMPOSED.get(tuple(self.events[start:]))
        if known is None and self._states(list(_tensors(inputs))) == [_GATE]:
            known = path if len(self.events) > start + 1 else None
        if known is not None:
            self.events[start:] = [("act", known)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, made = list(_tensors((args, kwargs))), list(_tensors(result))
        if self.inside:
            return result
        name = getattr(func, "__name__", repr(func))
        is_property = name == "__get__"  # T, data, ...
        if is_property:
            name = func.__self__.__name__
        of_map = [t for t in given if id(t) in self.states]
        if not made:  # other results are sizes and types
            if name not in _SIZES and (of_map or any(id(t) in self.owners for t in given)):
                self.events.append(("other", f"={name}" if is_property else name))
            return result
        owners = [self.owners[id(t)] for t in given if id(t) in self.owners]
        states = self._states(of_map)
        if not states:
            self._without_map(name, owners, made)
        elif name in _REARRANGING:
            self._keep(made, max(states))
        elif len(states) > 1:
            self._together(name, of_map, states, made)
        elif owners:
            self._with_parameter(name, owners[0], given, states[0], made)
        else:
            number = next((a for a in args[:2] if isinstance(a, (int, float))), None)
            self._alone(_ACTIVATIONS.get(func), name, number, of_map[0], states[0], made)
        return result

    def _states(self, tensors: list[Tensor]) -> list[int]:
        return [self.states[id(t)] for t in tensors if id(t) in self.states]

    def _keep(self, made: list[Tensor], state: int, kind: str = "", name: str = "") -> None:
        self.kept += made
        self.states |= {id(t): state for t in made}
        if kind:
            self.events.append((kind, name))

    def _without_map(self, name: str, owners: list[str], made: list[Tensor]) -> None:
        """Numbers that are the same for all maps; a parameter's stay its."""
        self.kept += made
        if owners:
            self.owners |= {id(t): owners[0] for t in made}
        if name not in _REARRANGING:
            self.events.append(("other", name))

    def _layer(self, made: list[Tensor], state: int, path: str) -> None:
        if state in (_SQUEEZED, _GATE):
            self._keep(made, _GATE, "layer", path)
        else:
            self._keep(made, state, "conv", path)

    def _together(
        self, name: str, given: list[Tensor], states: list[int], made: list[Tensor]
    ) -> None:
        """An operation on several tensors that depend on the map."""
        pair = tuple(sorted(states))
        same = made[0].numel() == max(map(Tensor.numel, given))
        if same and pair in ((_MAP, _GATE), (_GATE, _SCALED)) and name in ("", *_PRODUCTS):
            self._keep(made, _SCALED, "mul")
        elif same and pair == (_MAP, _SCALED) and name in _SUMS:
            self._keep(made, _SCALED, "add")
        else:
            self._keep(made, pair[0], "other", name)

    def _with_parameter(
        self, name: str, owner: str, given: list[Tensor], state: int, made: list[Tensor]
    ) -> None:
        """An operation on a tensor that depends on the map, and a parameter."""
        if name in _MATRICES or any(_is_matrix(t) for t in given if id(t) in self.owners):
            self._layer(made, state, owner)
        elif name in _SUMS and self.events[-1:] == [("layer", owner)]:  # its bias
            self._keep(made, state)
        else:
            self._keep(made, state, "other", name)

    def _alone(
        self, act: str | None, name: str, number: Any, given: Tensor, state: int, made: list[Tensor]
    ) -> None:
        """An operation on one tensor that depends on the map."""
        if act is not None:
            self._keep(made, state, "act", act)
        elif name in _PRODUCTS | _QUOTIENTS and number is not None:
            if number == 1 or state == _SQUEEZED:  # a sum becomes a mean: that is tried out
                self._keep(made, state)
            else:
                by = "multiplies" if name in _PRODUCTS else "divides"
                self._keep(made, state, "number", f"{by} by {number:g}")
        elif name in _SUMS and number is not None:
            one = number == 1 and state == _GATE  # x * (1 + s) is x + x * s
            self._keep(made, state, *(("add", "") if one else ("number", f"adds {number:g}")))
        elif not self._squeeze(given, made, state, name):
            self._keep(made, state, "other", name)

    def _squeeze(self, given: Tensor, made: list[Tensor], state: int, name: str) -> bool:
        """Whether it makes fewer numbers of a map; the second part of a squeeze is no event."""
        after = made[0].numel()
        if state not in (_MAP, _PARTLY) or after >= given.numel():
            return False
        done = after in (
            given.shape[0] * given.shape[min(self.axis, given.dim() - 1)],
            self.squeezed,
        )
        kind = "pool" if state == _MAP else ""
        self._keep(made, _SQUEEZED if done else _PARTLY, kind, name)
        return True

    def returned(self, y: Any) -> str:
        """What the forward gave."""
        if not isinstance(y, Tensor):
            return "tuple"
        state = self.states.get(id(y))
        if state == _SCALED:
            return "scaled"
        return "gate" if state == _GATE and y.dim() == self.kept[0].dim() else "other"


def _counts_as_one(module: Any) -> bool:
    """Whether its call is one event: a layer of torch's, or an activation that is known."""
    if not is_fixed(type(module)):
        return activations.resolve(module) is not None
    if isinstance(module, (*LAYERS, *NORMS, nn.PReLU)):
        return True
    return not (module._modules or module._parameters or isinstance(module, CONTAINERS))


def _is_matrix(t: Tensor) -> bool:
    return sum(size > 1 for size in t.shape) > 1


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
