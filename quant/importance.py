"""Importance matrices: how large the inputs of each matrix's columns are, as llama.cpp's GGUF files of that kind hold it.

An error in a column costs in proportion to the mean square of what the column is multiplied by, so quantizers weigh with it.
Source   llama.cpp's tools/imatrix: for each tensor, NAME.in_sum2 float32 (counts, columns) and NAME.counts float32 (counts, 1);
         general.type = imatrix, imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quant.errors import UserError, brief
from quant.gguf_header import MetadataValue, TensorEntry, pack_header, padding

# So many vectors whose columns are all alike are added to those that a matrix has seen: an expert that rarely is chosen is
# weighed nearly evenly, not by the accident of a few tokens.
_PRIOR = 32


@dataclass(frozen=True)
class Importance:
    """Sums over everything that was read.

    sums     {tensor name: float32 (counts, columns)}, sums of squares
    counts   {tensor name: float32 (counts,)}, how many vectors each row of sums has seen: one for each expert; the heads of
             attn_k_b and attn_v_b see every token and share one, so that their columns stand side by side
    """

    sums: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    datasets: list[str]
    n_chunks: int
    chunk_size: int
    files: tuple[Path, ...] = ()  # where it was read from

    def knows(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether it has values for the tensor of that name and row-major shape. Raises UserError if it is of another model."""
        if name not in self.sums or not self.counts[name].any():
            return False
        matrices, columns = math.prod(shape[:-2]), shape[-1]
        found = self.sums[name].shape
        if found not in ((matrices, columns), (1, matrices * columns)):
            raise UserError(
                f"the importance matrix has {found[0]} x {found[1]} values for {name}, "
                f"the model {matrices} x {columns}: it is of another model"
            )
        return True

    def weights(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """float32 (matrices, columns), mean squares, as the searches of quant/blocks weigh errors; None if it does not know."""
        if not self.knows(name, shape):
            return None
        sums = self.sums[name].reshape(math.prod(shape[:-2]), shape[-1]).astype(np.float64)  # (matrices, columns)
        counts = self.counts[name].astype(np.float64)[:, None]  # (matrices, 1), or (1, 1)
        seen = np.broadcast_to(counts, (len(sums), 1))
        even = sums.sum() / seen.sum() / sums.shape[1]  # the mean square of all columns
        return ((sums + _PRIOR * even) / (counts + _PRIOR)).astype(np.float32)  # (matrices, columns)

    def metadata(self, n_tensors: int) -> dict[str, MetadataValue]:
        """What llama-quantize notes in a file about the importance matrix that n_tensors of it were weighed with."""
        found: dict[str, MetadataValue] = {"quantize.imatrix.dataset": self.datasets[0]} if self.datasets else {}
        return found | {"quantize.imatrix.entries_count": n_tensors, "quantize.imatrix.chunks_count": self.n_chunks}

    def digest(self) -> str:
        """SHA-256 of all that weights() depends on."""
        digest = hashlib.sha256()
        for name in sorted(self.sums):
            digest.update(name.encode() + self.sums[name].tobytes() + self.counts[name].tobytes())
        return digest.hexdigest()

    def packed(self) -> bytes:
        """The whole file, in llama.cpp's form."""
        arrays = {}
        for name in sorted(self.sums):
            arrays[f"{name}.in_sum2"] = self.sums[name]
            arrays[f"{name}.counts"] = self.counts[name].reshape(-1, 1)
        metadata: dict[str, MetadataValue] = {
            "general.type": "imatrix",
            "imatrix.datasets": self.datasets,
            "imatrix.chunk_count": self.n_chunks,
            "imatrix.chunk_size": self.chunk_size,
        }
        header = pack_header(metadata, [TensorEntry(name, array.shape, 0, array.nbytes) for name, array in arrays.items()])
        return header + b"".join(array.astype("<f4").tobytes() + bytes(padding(array.nbytes)) for array in arrays.values())


def is_importance(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file with these metadata holds an importance matrix."""
    kind = metadata.get("general.type")
    return isinstance(kind, str) and kind == "imatrix"


def from_tensors(metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], file: Path) -> Importance:
    """An importance matrix from the values of a GGUF file.

    Raises UserError for a file of another kind, and for sums that are negative, not finite or without counts.
    """
    if not is_importance(metadata):
        raise UserError(
            f"{file} is not an importance matrix: its general.type is {brief(metadata.get('general.type'))}, not 'imatrix'"
        )
    sums, counts = {}, {}
    for full, values in tensors.items():
        if not full.endswith(".in_sum2"):
            continue
        name = full.removesuffix(".in_sum2")
        found, seen = np.atleast_2d(values), tensors.get(f"{name}.counts")
        if seen is None or found.ndim > 2 or seen.size != len(found):
            raise UserError(f"{file}: {full} has {len(found)} rows and {0 if seen is None else seen.size} counts")
        for array in (found, seen):
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise UserError(f"{file}: {name} has sums or counts that are negative or not finite")
        sums[name], counts[name] = found.astype(np.float32), seen.reshape(-1).astype(np.float32)
    datasets, n_chunks, chunk_size = (metadata.get(f"imatrix.{what}") for what in ("datasets", "chunk_count", "chunk_size"))
    return Importance(
        sums,
        counts,
        [text for text in datasets if isinstance(text, str)] if isinstance(datasets, list) else [],
        n_chunks if isinstance(n_chunks, int) and 0 <= n_chunks < 1 << 32 else 0,
        chunk_size if isinstance(chunk_size, int) and 0 <= chunk_size < 1 << 32 else 0,
        (file,),
    )
