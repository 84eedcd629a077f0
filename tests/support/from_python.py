"""Kernels are called by kernels; only entries have a side for Python."""

from collections.abc import Callable
from typing import Any

import numba


def from_python(kernel: Any) -> Callable[..., Any]:
    """A function for Python that calls the kernel; compiled at the first call, for what it is called with."""

    @numba.njit
    def call(*arguments):
        return kernel(*arguments)

    return call
