"""The operators ``torch.ops.chattn_cuda_triton.se_forward`` and ``se_backward``.

Registered with ``torch.library.Library`` rather than ``custom_op``, whose wrapper costs more than
the launches do. The schemas are those of the native operators, and fake kernels are registered for
all namespaces in one place.
"""

from __future__ import annotations

import threading

import torch

NAMESPACE = "chattn_cuda_triton"

SCHEMAS = (
    "se_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, int act, float act_param, "
    "int gate_fn, bool add_maxpool) "
    "-> (Tensor y, Tensor pooled, Tensor peak, Tensor hidden, Tensor gate)",
    "se_backward(Tensor dy, Tensor? dgate, Tensor x, Tensor pooled, Tensor peak, Tensor hidden, "
    "Tensor gate, Tensor w1, Tensor w2, int act, float act_param, int gate_fn, bool add_maxpool, "
    "bool need_dx, bool need_dw) "
    "-> (Tensor dx, Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)",
)

_library: torch.library.Library | None = None
_lock = threading.Lock()


def register() -> None:
    """Define the operators, once per process; imports triton.

    CPU tensors are accepted only where Triton interprets (TRITON_INTERPRET=1).

    Raises:
        ImportError: if triton is not installed.
    """
    global _library
    with _lock:
        if _library is not None:
            return
        from . import se

        library = torch.library.Library(NAMESPACE, "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        for key in ("CUDA", "CPU"):
            library.impl("se_forward", se.se_forward, key)
            library.impl("se_backward", se.se_backward, key)
        _library = library
