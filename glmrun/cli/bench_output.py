"""llama-bench's forms of output, and its rows as a bar chart."""

import csv
from collections.abc import Iterator
from typing import Any, TextIO

from glmrun.cli.bench_table import BenchTable
from glmrun.measure.bench_rows import Curves
from glmrun.terminal.sanitize import json_text, one_line, visible

_BAR = 40  # columns of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"


class BenchOutput:
    """Rows as md, csv, json, jsonl or sql to one stream, each as soon as it is known where the form allows; table is md's."""

    def __init__(self, form: str, stream: TextIO, table: BenchTable) -> None:
        self._form, self._stream, self._table = form, stream, table
        self._rows: list[dict[str, Any]] = []

    def row(self, row: dict[str, Any]) -> None:
        """Add an object of llama-bench's JSON."""
        self._rows.append(row)
        for line in self._lines(row, len(self._rows) == 1):
            print(visible(line) if self._stream.isatty() else line, file=self._stream, flush=True)

    def end(self) -> None:
        """Print what had to wait for all rows."""
        if self._form == "json":
            print(json_text(self._rows), file=self._stream, flush=True)

    def _lines(self, row: dict[str, Any], first: bool) -> Iterator[str]:
        if self._form == "md":
            if first:
                yield self._table.heading()
            yield self._table.row(row)
        elif self._form == "jsonl":
            yield json_text(row, indent=None)
        elif self._form in ("csv", "sql"):
            flat = {name: value for name, value in row.items() if not isinstance(value, list)}
            yield from (_csv if self._form == "csv" else _sql)(flat, first)


def _csv(row: dict[str, Any], first: bool) -> Iterator[str]:
    """Names plain, values quoted."""
    if first:
        yield ",".join(row)
    line = _Line()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(_plain(value) for value in row.values())
    yield line.text


class _Line:
    text = ""

    def write(self, text: str) -> None:
        self.text += text


def _sql(row: dict[str, Any], first: bool) -> Iterator[str]:
    """Statements that make the table llama_bench and fill it."""
    if first:
        kinds = {bool: "INTEGER", int: "INTEGER", float: "REAL", str: "TEXT", type(None): "REAL"}
        yield (
            "CREATE TABLE IF NOT EXISTS llama_bench (\n  "
            + ",\n  ".join(f"{k} {kinds[type(v)]}" for k, v in row.items())
            + "\n);\n"
        )
    values = ", ".join("NULL" if v is None else "'" + str(_plain(v)).replace("'", "''") + "'" for v in row.values())
    yield f"INSERT INTO llama_bench ({', '.join(row)}) VALUES ({values});"


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def bar_chart(by: str, curves: Curves) -> str:
    """Curves as bars, a group for each: `d4096 ████████▌ 31.10`; those of one test to one scale."""
    lines = [f"tokens a second by {by}"]
    for test, some in curves.items():
        longest = max(speed for points in some.values() for _, speed in points)
        names = {x: f"{'d' if by == 'depth' else ''}{x}" for points in some.values() for x, _ in points}
        width = max(map(len, names.values()))
        for label, points in some.items():
            lines += ["", one_line(f"{test}, {label}")]
            for x, speed in points:
                eighths = round(8 * _BAR * speed / longest)
                lines.append(f"  {names[x]:>{width}} {'█' * (eighths // 8)}{_EIGHTHS[eighths % 8].strip()} {speed:.2f}")
    return "\n".join(lines)
