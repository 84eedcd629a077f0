"""Tables: llama-bench's Markdown row by row, and aligned columns for plans and files."""

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from glmrun.terminal.sanitize import one_line

# {heading: (width, right-aligned)} as llama-bench lays them out, and what of it fits into 80 columns.
_WIDE = {
    "model": (30, False),
    "size": (10, True),
    "params": (10, True),
    "backend": (10, False),
    "threads": (7, True),
    "test": (15, True),
    "t/s": (20, True),
}
_NARROW = {"model": (26, False), "size": (9, True), "test": (13, True), "t/s": (17, True)}


class BenchTable:
    """llama-bench's Markdown table, a line at a time; a terminal that is too narrow for it gets the columns that matter most."""

    def __init__(self) -> None:
        narrow = sys.stdout.isatty() and shutil.get_terminal_size().columns < len(_line({name: name for name in _WIDE}, _WIDE))
        self._columns = _NARROW if narrow else _WIDE

    def heading(self) -> str:
        """The two lines it begins with."""
        rules = {name: "-" * (width - right) + ":" * right for name, (width, right) in self._columns.items()}
        return f"{_line({name: name for name in self._columns}, self._columns)}\n{_line(rules, self._columns)}"

    def row(self, row: dict[str, Any], test: str) -> str:
        """The line of one object of llama-bench's JSON."""
        values = {
            "model": row["model_type"],
            "size": bytes_text(row["model_size"]),
            "params": params_text(row["model_n_params"]),
            "backend": row["backends"],
            "threads": str(row["n_threads"]),
            "test": test,
            "t/s": f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
        }
        return _line(values, self._columns)


def _line(values: dict[str, str], columns: dict[str, tuple[int, bool]]) -> str:
    cells = [f"{values[name]:>{width}}" if right else f"{values[name]:<{width}}" for name, (width, right) in columns.items()]
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
