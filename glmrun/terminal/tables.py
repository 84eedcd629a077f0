"""Aligned columns for plans and files, and numbers as llama-bench writes them."""

from collections.abc import Sequence

from glmrun.terminal.sanitize import one_line


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = (), width: int | None = None) -> str:
    """Rows as aligned columns two spaces apart, the first row being the heading; `right` lists columns that align right.

    width   of the window, in cells: the last column is cut off so that a row is one line, if it keeps ten cells
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if width is not None and (room := width - sum(max(len(row[i]) for row in cells) + 2 for i in range(len(cells[0]) - 1))) >= 10:
        cells = [[*row[:-1], row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"] for row in cells]
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
