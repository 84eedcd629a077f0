"""Encoders compiled by Numba."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable], Any]:
    """Decorator: numba.njit() with these options, its code kept for later starts; not where nothing can be written."""

    def decorate(function: Callable) -> Any:
        jitted = njit(**options)(function)
        with suppress(RuntimeError):  # Numba finds no folder for it
            jitted.enable_caching()
        return jitted

    return decorate
