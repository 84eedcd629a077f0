"""Tables: llama-bench's Markdown row by row, and aligned columns for plans and files."""

from collections.abc import Sequence
from typing import Any

from glmrun.terminal.sanitize import one_line

# (heading, width, right-aligned) as llama-bench lays them out.
_BENCH = [
    ("model", 30, False),
    ("size", 10, True),
    ("params", 10, True),
    ("backend", 10, False),
    ("threads", 7, True),
    ("test", 15, True),
    ("t/s", 20, True),
]


def bench_heading() -> str:
    """The two lines that begin llama-bench's Markdown table."""
    names = [f"{name:>{width}}" if right else f"{name:<{width}}" for name, width, right in _BENCH]
    rules = ["-" * (width - 1) + (":" if right else "-") for _, width, right in _BENCH]
    return f"| {' | '.join(names)} |\n| {' | '.join(rules)} |"


def bench_row(row: dict[str, Any], test: str) -> str:
    """One line of llama-bench's Markdown table from one object of its JSON."""
    values = [
        row["model_type"],
        bytes_text(row["model_size"]),
        params_text(row["model_n_params"]),
        row["backends"],
        str(row["n_threads"]),
        test,
        f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
    ]
    cells = [f"{value:>{width}}" if right else f"{value:<{width}}" for value, (_, width, right) in zip(values, _BENCH, strict=True)]
    return f"| {' | '.join(cells)} |"


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns two spaces apart, the first row being the heading; `right` lists columns that align right."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:>{w}}" if i in right else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def bytes_text(count: int) -> str:
    """Bytes as llama-bench writes them: 7.71 MiB, 16.88 GiB."""
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.2f} MiB"


def params_text(count: int) -> str:
    """Weights as llama-bench writes them: 9.44 M, 31.22 B."""
    return f"{count / 1e9:.2f} B" if count >= 10**9 else f"{count / 1e6:.2f} M"
