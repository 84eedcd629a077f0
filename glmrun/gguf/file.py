"""What a proven GGUF file is: its metadata and its tensors, mapped and read only."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from glmrun.gguf.watch import Watched
from quant.errors import UserError, brief
from quant.formats import FORMATS


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table; `shape` is row-major."""

    name: str
    shape: tuple[int, ...]
    format: str
    data: np.ndarray = field(repr=False, compare=False)  # uint8 (n_bytes,), in place; of a stack also as `matrices`
    offset: int = 0  # from the start of its file

    @property
    def n_bytes(self) -> int:
        """Bytes of its blocks."""
        return self.data.nbytes

    @property
    def matrices(self) -> np.ndarray:
        """The matrices of a stack in place, uint8 (matrices, bytes of one), perhaps with others between them; else the one."""
        return self.data.reshape(prod(self.shape[:-2]), -1)

    @property
    def rows(self) -> np.ndarray:
        """The blocks, uint8 (rows, bytes of a row), in place unless others stand between matrices; a vector has one row."""
        return self.data.reshape(prod(self.shape[:-1]), -1)

    def floats(self) -> np.ndarray:
        """The values, float32 (shape): for vectors and for tests, never for a weight matrix at run time."""
        return FORMATS[self.format].decode(self.rows).reshape(self.shape)  # float32 (shape)


@dataclass(frozen=True)
class GGUFFile:
    """A validated, read-only mapping of one file, or of all parts of a split one."""

    path: Path  # the first part's
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    size: int
    mappings: list[np.ndarray]  # uint8 (size of the part,) each
    watched: list[Watched]  # one for each mapping

    def hyper_parameter(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of a key below the architecture's name; raises UserError if it is missing or of another type."""
        key = f"{self.metadata['general.architecture']}.{key}"
        value = self.metadata.get(key, default)
        if value is None:
            raise UserError(f"{self.path}: {key} is missing from the file's metadata")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise UserError(f"{self.path}: {key} is {brief(value)}; glmrun expects {kind.__name__}")
        return value
