"""A GGUF file as the source of a conversion (quant.plan.Source): the same tensors in other formats, everything else kept."""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from glmrun.architecture import config_from_gguf
from glmrun.gguf_file import GGUFFile, open_gguf
from quant.config import Config, tensor_shapes
from quant.errors import UserError
from quant.gguf_header import MetadataValue
from quant.mapping import ARCHITECTURE, Piece, hyper_parameters
from quant.recipes import RECIPES
from quant.shards import Shard, SourceTensor

# What is said anew, or was true of the old file only.
_DROPPED = ("glmrun.checksum.", "split.", "quantize.", "general.alignment")


class GGUFSource:
    """An opened GGUF file; no weight has been read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.config, self.notes = file, config_from_gguf(file), list[str]()
        self.files = [file.path]
        status = file.path.stat()
        shard = Shard(file.path, status.st_size, status.st_mtime_ns)
        self.tensors: Mapping[str, SourceTensor] = {
            name: SourceTensor(name, tensor.format, tensor.shape, shard, tensor.offset) for name, tensor in file.tensors.items()
        }

    @classmethod
    def open(cls, path: str | Path) -> "GGUFSource":
        """Open a file; raises UserError with exit code 3 for one that is missing, 1 for one that is no whole model."""
        return cls(open_gguf(path))

    @property
    def name(self) -> str:
        """The file's name without the quantization at its end."""
        return re.sub(rf"(?i)[-.]({'|'.join(RECIPES)})$", "", self.file.path.stem)

    def pieces(self, config: Config) -> dict[str, list[Piece]]:
        """{tensor: itself}."""
        found = {}
        for name, shape in tensor_shapes(config).items():
            if name not in self.tensors:
                raise UserError(
                    f"{self.file.path}: {name} is stored in another form; glmrun converts files as llama.cpp writes them"
                )
            found[name] = [Piece(name, shape, 0, prod(shape[:-1]))]
        return found

    def metadata(self, config: Config, file_type: int, n_weights: int) -> dict[str, MetadataValue]:
        """The file's own keys; hyper-parameters are written anew, so that a dialect is not passed on."""
        old = self.file.metadata["general.architecture"]
        anew: dict[str, MetadataValue] = {"general.architecture": ARCHITECTURE, "general.quantization_version": 2}
        anew |= {"general.file_type": file_type} | hyper_parameters(config)
        found: dict[str, MetadataValue] = {}
        for key, value in self.file.metadata.items():
            gone = key.startswith(f"{old}.") and (old != ARCHITECTURE or key == f"{old}.nextn_predict_layers")
            if key in anew:
                found[key] = anew[key]
            elif not gone and not key.startswith(_DROPPED):
                found[key] = _value(value)
        return found | anew


def _value(value: Any) -> MetadataValue:
    """What the reader made of a value, as the writer takes it."""
    if type(value) is int and not 0 <= value < 1 << 32:
        return np.int64(value) if value < 1 << 63 else np.uint64(value)
    if type(value) is float:
        return value if abs(value) < 3e38 else np.float64(value)
    return value
