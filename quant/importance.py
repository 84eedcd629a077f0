"""Importance matrices: how large the inputs of each matrix's columns are, as llama.cpp's GGUF files of that kind hold it.

An error in a column costs in proportion to the mean square of what the column is multiplied by, so quantizers weigh with it.
Source   llama.cpp's tools/imatrix: for each tensor, NAME.in_sum2 float32 (counts, columns) and NAME.counts float32 (counts, 1);
         general.type = imatrix, imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
         its older form, which ik_llama.cpp writes: i32 entries | entries x (i32 bytes, name, i32 calls, i32 values, float32 values)
         | perhaps i32 chunks, i32 bytes, the text's name; values are mean squares times calls, little-endian
"""

import hashlib
import math
import re
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
_CHUNK = 512  # vectors of one call: the older form counts calls alone, and this is what llama-imatrix reads together unless told
_MAX_ENTRIES, _MAX_NAME = 1 << 16, 256


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
        if found not in ((matrices, columns), (1, matrices * columns), (1, columns)):
            raise UserError(
                f"the importance matrix has {found[0]} x {found[1]} values for {name}, "
                f"the model {matrices} x {columns}: it is of another model"
            )
        return True

    def weights(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """float32 (matrices, columns), mean squares, as the searches of quant/blocks weigh errors; None if it does not know."""
        if not self.knows(name, shape):
            return None
        found = self.sums[name].reshape(-1, shape[-1]).astype(np.float64)
        sums = np.broadcast_to(found, (math.prod(shape[:-2]), shape[-1]))  # (matrices, columns)
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


def is_old_form(start: bytes) -> bool:
    """Whether a file that begins with these 512 bytes looks like an importance matrix of llama.cpp's older form."""
    n_entries, length = np.frombuffer(start.ljust(8, b"\0"), "<i4", 2).tolist()
    return 0 < n_entries <= _MAX_ENTRIES and 0 < length <= _MAX_NAME and bool(re.fullmatch(rb"[\w.-]+", start[8 : 8 + length]))


def from_old_form(raw: bytes, file: Path) -> Importance:
    """An importance matrix from the bytes of a file in llama.cpp's older form. Raises UserError where they end too early."""
    at = 0

    def take(dtype: str, n: int) -> np.ndarray:
        nonlocal at
        n_bytes = n * np.dtype(dtype).itemsize
        if not 0 <= n_bytes <= len(raw) - at:
            raise UserError(
                f"{file}: an importance matrix that is cut off or damaged at byte {at:,} of {len(raw):,}; fetch it again"
            )
        at += n_bytes
        return np.frombuffer(raw, dtype, n, at - n_bytes)

    def number() -> int:
        return int(take("<i4", 1)[0])

    tensors: dict[str, np.ndarray] = {}
    for _ in range(number()):
        name = take("u1", number()).tobytes().decode(errors="replace")
        n_calls = number()
        tensors[f"{name}.in_sum2"] = take("<f4", number()).reshape(1, -1) * np.float32(_CHUNK)
        tensors[f"{name}.counts"] = np.full((1, 1), n_calls * _CHUNK, np.float32)
    metadata: dict[str, Any] = {"general.type": "imatrix", "imatrix.chunk_size": _CHUNK}
    if at < len(raw):
        metadata["imatrix.chunk_count"] = number()
        metadata["imatrix.datasets"] = [take("u1", number()).tobytes().decode(errors="replace")]
    return from_tensors(metadata, tensors, file)
