"""Curves as a picture file; needs matplotlib, which the extra `plot` brings."""

import contextlib
import os
from pathlib import Path

from quant.errors import UserError

KINDS = (".png", ".svg")
Curves = dict[str, dict[str, list[tuple[int, float]]]]  # {test: {curve: [(x, tokens a second)]}}


def check(path: str) -> None:
    """Raise UserError now if write() could not make this file later."""
    if Path(path).suffix.lower() not in KINDS:
        raise UserError(f"{path}: a plot's name ends in {' or '.join(KINDS)}", "usage")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"{path}: the folder does not exist", "missing")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(
            "a plot in a file needs matplotlib: pip install 'glmrun[plot]'; the terminal needs none", setting="plot"
        ) from None


def write(path: str, title: str, by: str, curves: Curves) -> None:
    """Draw tokens a second against `by`, a picture for each test beside the others; the file appears when it is complete."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5 * len(curves), 5), layout="constrained")
    figure.suptitle(title)
    for axes, (test, some) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for label, points in some.items():
            axes.plot([x for x, _ in points], [speed for _, speed in points], marker="o", label=label)
        axes.set(title=test, xlabel=by, ylabel="tokens a second")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    target = Path(path)
    unfinished = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix.lower()}")
    try:
        figure.savefig(unfinished)
        os.replace(unfinished, target)
    except OSError as why:
        raise OSError(why.errno, why.strerror, path) from None  # the name that the user wrote
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
