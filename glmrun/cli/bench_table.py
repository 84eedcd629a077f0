"""llama-bench's Markdown table, row by row."""

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from glmrun.measure.bench import case_name
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import bytes_text, params_text

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
_NARROW = {"model": (22, False), "size": (9, True), "test": (19, True), "t/s": (17, True)}
# Columns that stand there when something differs from llama-bench's default, and those of --wide.
_CHOICES = {"n_ubatch": (8, True), "type_k": (6, True), "type_v": (6, True), "draft": (6, True)}
_MEASURED = {"ttft ms": (9, True), "peak memory": (11, True), "GB/s": (6, True), "of bandwidth": (12, True), "disk GB/s": (9, True),
             "hit rate": (8, True)}  # fmt: skip


class BenchTable:
    """llama-bench's Markdown table, a line at a time; a terminal that is too narrow for it gets the columns that matter most,
    and what --wide measures below each line.

    choices   names among n_ubatch, type_k, type_v and draft that get a column
    measured  add what --wide measures
    """

    def __init__(self, choices: Sequence[str] = (), measured: bool = False) -> None:
        columns = {name: width for name, width in _WIDE.items() if name not in ("test", "t/s")}
        columns |= {name: width for name, width in _CHOICES.items() if name in choices}
        columns |= {name: _WIDE[name] for name in ("test", "t/s")} | (_MEASURED if measured else {})
        fits = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= len(_line(dict.fromkeys(columns, ""), columns))
        self._columns, self._below = (columns, False) if fits else (_NARROW, measured)

    def heading(self) -> str:
        """The two lines it begins with."""
        rules = {name: "-" * (width - right) + ":" * right for name, (width, right) in self._columns.items()}
        return f"{_line({name: name for name in self._columns}, self._columns)}\n{_line(rules, self._columns)}"

    def row(self, row: dict[str, Any]) -> str:
        """The line of one object of llama-bench's JSON."""
        values = {
            "model": one_line(row["model_type"].removeprefix("deepseek2 ") if self._columns is _NARROW else row["model_type"]),
            "size": bytes_text(row["model_size"]) if row["model_size"] else "",
            "params": params_text(row["model_n_params"]) if row["model_n_params"] else "",
            "backend": row["backends"],
            "threads": str(row["n_threads"] or ""),
            "test": case_name(row["n_prompt"], row["n_gen"], row["n_depth"]),
            "t/s": f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
        }
        values |= {name: str(row[name]) for name in _CHOICES if name in self._columns}
        if "GB/s" not in self._columns and not self._below:
            return _line(values, self._columns)
        ttft, peak, weights, share = (row[name] for name in ("ttft_ms", "peak_memory_bytes", "weights_gb_s", "bandwidth_share"))
        measured = {
            "ttft ms": "" if ttft is None else f"{ttft:.1f}",
            "peak memory": "" if peak is None else bytes_text(peak),
            "GB/s": "" if weights is None else f"{weights:.2f}",
            "of bandwidth": "" if share is None else f"{share:.0%}",
            "disk GB/s": f"{row['disk_gb_s']:.2f}" if row["disk_gb_s"] else "",
            "hit rate": "" if row["disk_hit_rate"] is None else f"{row['disk_hit_rate']:.1%}",
        }
        below = f"\n  {', '.join(f'{name}: {text}' for name, text in measured.items() if text)}" if self._below else ""
        return _line(values | measured, self._columns) + below


def _line(values: dict[str, str], columns: dict[str, tuple[int, bool]]) -> str:
    cells = [f"{values[name]:>{width}}" if right else f"{values[name]:<{width}}" for name, (width, right) in columns.items()]
    return f"| {' | '.join(cells)} |"
