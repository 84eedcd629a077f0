"""Curves as a picture file; needs matplotlib, which the extra `plot` brings."""

import os
from pathlib import Path

from quant.errors import UserError

KINDS = (".png", ".svg")


def check(path: str) -> None:
    """Raise UserError now if write() could not make this file later."""
    if Path(path).suffix.lower() not in KINDS:
        raise UserError(f"{path}: a plot's name ends in {' or '.join(KINDS)}", 2)
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"{path}: the folder does not exist", 3)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("a plot in a file needs matplotlib: pip install 'glmrun[plot]'; --plot draws in the terminal") from None


def write(path: str, title: str, by: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    """Draw tokens a second against `by`; the file appears under its name only when complete."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=by, ylabel="tokens a second", title=title)
    for label, points in curves.items():
        axes.plot([x for x, _ in points], [speed for _, speed in points], marker="o", label=label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    target = Path(path)
    unfinished = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix.lower()}")
    try:
        figure.savefig(unfinished)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
