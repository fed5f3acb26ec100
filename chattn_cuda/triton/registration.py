"""The operators ``torch.ops.chattn_cuda_triton.*``.

Registered with ``torch.library.Library`` rather than ``custom_op``, whose wrapper costs more than
the launches do. The schemas are those of the native operators, and fake kernels are registered for
all namespaces in one place.
"""

from __future__ import annotations

import importlib
import threading

import torch

from chattn_cuda.ops.blocks import BLOCKS

NAMESPACE = "chattn_cuda_triton"

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
        library = torch.library.Library(NAMESPACE, "DEF")
        for block in (*BLOCKS, "sk", "tail"):
            # It has a function for each operator, of its name.
            module = importlib.import_module(f"chattn_cuda.triton.{block}")
            described = BLOCKS.get(block)
            for schema in module.SCHEMAS if described is None else described.schemas:
                library.define(schema)
                name = schema.partition("(")[0]
                for key in ("CUDA", "CPU"):
                    library.impl(name, getattr(module, name), key)
        _library = library
