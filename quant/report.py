"""What a conversion did, as one JSON object: sizes, formats and errors, in total, by class of tensor, and tensor by tensor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.convert import Done, Plan, Row


@dataclass
class TensorClass:
    """All tensors of one role in all layers."""

    name: str
    formats: list[str]
    tensors: int = 0
    weights: int = 0
    bytes: int = 0
    squared_error: float = 0.0
    squared_weight: float = 0.0

    @property
    def relative_error(self) -> float:
        """sum((weight - stored)**2) / sum(weight**2), over what was measured."""
        return self.squared_error / self.squared_weight if self.squared_weight else 0.0


def tensor_classes(rows: Sequence[Row], done: Sequence[Done]) -> list[TensorClass]:
    """Totals by role: attn_q_a, ffn_down_exps, output, ..., in the order of the file."""
    found: dict[str, TensorClass] = {}
    for row, result in zip(rows, done, strict=True):
        name = re.sub(r"^blk\.\d+\.|\.weight$", "", row.name)
        total = found.setdefault(name, TensorClass(name, []))
        if row.format not in total.formats:
            total.formats.append(row.format)
        total.tensors += 1
        total.weights += row.n_weights
        total.bytes += row.n_bytes
        total.squared_error += result.squared_error
        total.squared_weight += result.squared_weight
    return list(found.values())


def report(plan: Plan, done: Sequence[Done], output: Path, seconds: float, n_resumed: int) -> dict[str, Any]:
    """The object; errors are of squares, relative to the squared weights, and 0 where nothing was rounded."""
    return {
        "files": [str(part.path(output)) for part in plan.parts],
        "source": [str(path) for path in plan.source.files],
        "quantization": plan.recipe.name,
        "file_bytes": plan.file_bytes,
        "weights": plan.n_weights,
        "bits_per_weight": plan.bits_per_weight,
        "seconds": seconds,
        "tensors_of_earlier_runs": n_resumed,
        "classes": [
            {
                "name": c.name,
                "formats": c.formats,
                "tensors": c.tensors,
                "weights": c.weights,
                "bytes": c.bytes,
                "relative_error": c.relative_error,
            }
            for c in tensor_classes(plan.rows, done)
        ],
        "tensors": [
            {
                "name": row.name,
                "shape": row.shape,
                "from": row.source,
                "to": row.format,
                "bytes": row.n_bytes,
                "sha256": result.checksum,
                "relative_error": result.relative_error,
            }
            for row, result in zip(plan.rows, done, strict=True)
        ],
    }
