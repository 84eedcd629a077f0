"""A GGUF file as the source of a conversion (quant.plan.Source): the same tensors in other formats, everything else kept."""

import contextlib
import re
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.dialects import fused
from glmrun.gguf.file import GGUFFile
from glmrun.gguf.open import open_parts
from glmrun.gguf.parts import join
from quant.checkpoint import Checkpoint
from quant.config import Config, of_trunk, tensor_shapes
from quant.gguf_header import MetadataValue
from quant.importance import Importance, from_old_form, from_tensors, is_importance, is_old_form
from quant.mapping import ARCHITECTURE, Piece, hyper_parameters
from quant.recipes import RECIPES
from quant.shards import Shard, SourceTensor

# What is said anew, or was true of the old file only.
_DROPPED = ("glmrun.checksum.", "split.", "quantize.", "general.alignment")


class GGUFSource:
    """An opened GGUF file; no weight has been read."""

    def __init__(self, parts: list[GGUFFile]) -> None:
        self.file = join(parts) if len(parts) > 1 else parts[0]
        self.config, self.notes, self.files = config_from_gguf(self.file), list[str](), [part.path for part in parts]
        self.tensors: dict[str, SourceTensor] = {}
        for part in parts:
            status = part.path.stat()
            shard = Shard(part.path, status.st_size, status.st_mtime_ns)
            for name, tensor in part.tensors.items():
                self.tensors[name] = SourceTensor(name, tensor.format, tensor.shape, shard, tensor.offset)

    @classmethod
    def open(cls, path: str | Path) -> "GGUFSource":
        """Open a file, or all parts of a split one; UserError: missing, or failed if it is not a whole model."""
        return cls(open_parts(path))

    @property
    def name(self) -> str:
        """The file's name without the quantization at its end."""
        return re.sub(rf"(?i)([-.]({'|'.join(RECIPES)}))?(-\d{{5}}-of-\d{{5}})?$", "", self.file.path.stem)

    def pieces(self, config: Config) -> dict[str, list[Piece]]:
        """{tensor: itself, or its rows of the one that holds it among others}."""
        found = {}
        for name, shape in tensor_shapes(config).items():
            other = None if name in self.tensors else fused(config, name)
            if other is None:
                own = name if name in self.tensors else of_trunk(config, name) or name
                found[name] = [Piece(own, shape, 0, prod(shape[:-1]))]
            else:
                source, whole, period, first, count = other
                turned = ".attn_k_b." in name
                groups = range(0, prod(whole[:-1]), period)
                found[name] = [Piece(source, whole, start + first, count, turned) for start in groups]
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
                found[key] = _value(key, value)
        return found | anew


def open_source(path: Path) -> Checkpoint | GGUFSource:
    """What a conversion reads: a GGUF file, or a checkpoint's folder. Raises UserError as their open() does."""
    return GGUFSource.open(path) if path.is_file() else Checkpoint.open(path)


def _value(key: str, value: Any) -> MetadataValue:
    """What the reader made of a value, as the writer takes it."""
    # The reader reports no widths; llama.cpp's numbers of sampling are signed.
    if type(value) is int and key.startswith("general.sampling.") and -(1 << 31) <= value < 1 << 31:
        return np.int32(value)
    if type(value) is int and not 0 <= value < 1 << 32:
        return np.int64(value) if value < 1 << 63 else np.uint64(value)
    if type(value) is float:
        return value if abs(value) < 3e38 else np.float64(value)
    return value


def read_importance(path: str | Path) -> Importance:
    """The importance matrix in a file, ours or llama.cpp's in either of its forms. Raises UserError."""
    path = Path(path)
    with contextlib.suppress(OSError):  # open_parts() says what is wrong
        if path.is_file():
            with open(path, "rb") as stream:
                if is_old_form(start := stream.read(512)):
                    return from_old_form(start + stream.read(), path)
    file = open_parts(path)[0]
    tensors = file.tensors if is_importance(file.metadata) else {}  # a model's weights would fill the memory
    return from_tensors(file.metadata, {name: tensor.floats() for name, tensor in tensors.items()}, path)
