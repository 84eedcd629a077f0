"""Conversions of a small model folder, whole and refused."""

from pathlib import Path
from typing import Any

import pytest

from quant.checkpoint import Checkpoint
from quant.convert import Progress, convert, plan
from quant.errors import UserError


def run(folder: Path, output: Path, quantization: str = "BF16", mtp: bool = True, **options: Any) -> list[Progress]:
    return list(convert(plan(Checkpoint.open(folder), quantization, mtp), output, **options))


def refused(folder: Path, output: Path, *args: Any, **options: Any) -> UserError:
    """The error of a conversion that must leave the output's folder as it was."""
    before = sorted(output.parent.iterdir()) if output.parent.exists() else None
    with pytest.raises(UserError) as caught:
        run(folder, output, *args, **options)
    assert "\n" not in str(caught.value)
    assert before is None or sorted(output.parent.iterdir()) == before
    return caught.value
