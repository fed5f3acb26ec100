"""Triton's interpreter, several times as fast.

For every call of a device function it looks through the members of triton.language, and replaces
those that are to be interpreted. Once per kernel is enough: they stay replaced until it is done.
"""

from __future__ import annotations

import functools
from typing import Any


def replace_once_per_kernel() -> None:
    """Change the interpreter of this process; without Triton, do nothing."""
    try:
        from triton import language
        from triton.runtime import interpreter
    except ImportError:
        return
    replace, run = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[Any] = set()

    @functools.cache
    def seen_by(function: Any) -> frozenset[Any]:
        values = function.__globals__.values()
        return frozenset(v for v in (language, language.core) if any(v is g for g in values))

    def patch_lang(function: Any) -> Any:
        seen = seen_by(function)
        if seen and seen <= replaced:
            return interpreter._LangPatchScope()  # with nothing to restore
        replaced.update(seen)
        return replace(function)

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        replaced.clear()
        try:
            run(self, *args, **kwargs)
        finally:
            replaced.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_lang, call
