"""What a conversion will write, known before it reads a single weight: which tensor becomes what, and how large it is.

plan(Checkpoint.open("GLM-4.7-Flash"), "Q4_K_M").file_bytes
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata as packages
from pathlib import Path
from typing import Protocol

import numpy as np

from quant.checksums import blank_metadata, seal
from quant.config import Config
from quant.errors import UserError, brief
from quant.formats import FORMATS
from quant.gguf_header import MetadataValue, TensorEntry, pack_header, padding
from quant.importance import Importance
from quant.mapping import Piece
from quant.recipes import Choice, Recipe, recipe, tensor_formats
from quant.shards import SourceTensor
from quant.system import cpu_info, cpu_name


class Source(Protocol):
    """What a plan needs of a model: quant.checkpoint.Checkpoint, or a GGUF file."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Config: ...
    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...
    @property
    def files(self) -> list[Path]: ...
    def pieces(self, config: Config) -> dict[str, list[Piece]]: ...
    def metadata(self, config: Config, file_type: int, n_weights: int) -> dict[str, MetadataValue]: ...


@dataclass(frozen=True)
class Row:
    """What happens to one tensor."""

    name: str
    shape: tuple[int, ...]  # row-major
    source: str  # the type in the source ("mixed" if its experts differ)
    format: str  # the type in the file
    n_bytes: int
    pieces: list[Piece]

    @property
    def n_weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Part:
    """One file of the output; there are several if it is split."""

    suffix: str  # "-00001-of-00003" or nothing
    rows: list[Row]
    metadata: dict[str, MetadataValue]

    def header(self, checksums: list[str]) -> bytes:
        """The front of the file, up to the first tensor's data, with the checksums of its tensors."""
        return seal(self.blank_header, checksums)

    @cached_property
    def blank_header(self) -> bytes:
        """The same with zeros in place of the checksums; to pack a vocabulary takes long enough to do it only once."""
        entries = [TensorEntry(r.name, r.shape, FORMATS[r.format].ggml_type, r.n_bytes) for r in self.rows]
        return pack_header(self.metadata | blank_metadata(len(entries)), entries)

    @property
    def header_bytes(self) -> int:
        """Size of the header."""
        return len(self.blank_header)

    @property
    def n_bytes(self) -> int:
        """Size of the file."""
        return self.header_bytes + sum(row.n_bytes + padding(row.n_bytes) for row in self.rows)

    def path(self, output: Path) -> Path:
        """The file's name: x.gguf, or x-00001-of-00003.gguf, as llama.cpp finds the parts of a split."""
        if output.name in ("", ".."):
            return output  # a folder, and publish() says so
        stem, dot_suffix = (
            (output.stem, output.suffix) if output.suffix == ".gguf" else (output.name, ".gguf" if self.suffix else "")
        )
        return output.with_name(f"{stem}{self.suffix}{dot_suffix}")


@dataclass(frozen=True)
class Plan:
    """What convert() will write."""

    source: Source
    config: Config  # of the file: without the next-token-prediction layer if that is left out
    recipe: Recipe
    rows: list[Row]
    metadata: dict[str, MetadataValue]
    split_bytes: int | None
    importance: Importance | None = None

    @property
    def tensor_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(row.n_bytes for row in self.rows)

    @property
    def n_weights(self) -> int:
        """Values in all tensors."""
        return sum(row.n_weights for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Average over all tensors."""
        return 8 * self.tensor_bytes / self.n_weights

    @cached_property
    def parts(self) -> list[Part]:
        """The files: one, or as many as split_bytes of tensor data each make necessary; the first has the metadata.

        Source: llama.cpp's gguf-split.
        """
        groups: list[list[Row]] = [[]]
        for row in self.rows:
            if self.split_bytes and groups[-1] and sum(r.n_bytes for r in groups[-1]) + row.n_bytes > self.split_bytes:
                groups.append([])
            groups[-1].append(row)
        if len(groups) == 1:
            return [Part("", self.rows, self.metadata)]
        parts = []
        for i, rows in enumerate(groups):
            count: dict[str, MetadataValue] = {
                "split.count": np.uint16(len(groups)),
                "split.tensors.count": np.int32(len(self.rows)),
            }
            described = (self.metadata if i == 0 else {}) | {"split.no": np.uint16(i)} | count
            parts.append(Part(f"-{i + 1:05}-of-{len(groups):05}", rows, described))
        return parts

    @property
    def file_bytes(self) -> int:
        """Size of the file or files."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def files(self) -> list[Path]:
        """The files it reads, none of which may be its output."""
        return [*self.source.files, *(self.importance.files if self.importance else ())]

    def identity(self) -> dict[str, str]:
        """What the bytes depend on, digested, by the name a user knows it by: runs that agree in all of it write the same bytes."""
        found = ((os.fsencode(path.resolve()), path.stat()) for path in self.source.files)
        return {
            "the source": _digest(name + f" {status.st_size} {status.st_mtime_ns}".encode() for name, status in found),
            "the options": _digest([part.blank_header for part in self.parts] + [repr(row).encode() for row in self.rows]),
            "the importance matrix": self.importance.digest() if self.importance else "",
            "glmrun": _digest(_program()),
        }

    def weights(self, row: Row) -> np.ndarray | None:
        """The importance of a tensor's columns, float32 (matrices, columns), if it is known."""
        return self.importance.weights(row.name, row.shape) if self.importance else None


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _program() -> Iterable[bytes]:
    """All that computes the bytes: this package, what compiles it, and the CPU: fused products are rounded once."""
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        yield path.read_bytes()
    for package in ("numpy", "numba", "llvmlite"):
        yield packages.version(package).encode()
    yield f"{cpu_name()} {cpu_info('flags')} {cpu_info('Features')}".encode()


def plan(
    source: Source,
    quantization: str | Recipe,
    mtp: bool = True,
    choice: Choice | None = None,
    split_bytes: int | None = None,
    overrides: Mapping[str, MetadataValue] | None = None,
    requantize: bool = False,
    importance: Importance | None = None,
) -> Plan:
    """The plan to convert source: which tensor becomes what, and how many bytes that makes. Reads no weights.

    quantization   a recipe or its name, upper or lower case; raises UserError (usage) for an unknown one
    mtp            keep the next-token-prediction layer, if the source has one
    choice         the user's own formats for some tensors
    split_bytes    tensor data of one file at most; None: one file
    overrides      metadata to set in the file; raises UserError (usage) for one of another type than the key has
    requantize     accept weights that lost precision already
    importance     where errors cost most; tensors that it does not know are quantized as without it
    """
    chosen = recipe(quantization) if isinstance(quantization, str) else quantization
    config = source.config if mtp else replace(source.config, num_nextn_predict_layers=0)
    parts, rows = source.pieces(config), []
    for name, (shape, kind, n_bytes) in tensor_formats(chosen, config, choice).items():
        stored = {source.tensors[piece.source].dtype for piece in parts[name]}
        if not requantize and (lossy := stored - {"F32", "F16", "BF16", kind}):
            raise UserError(
                f"{name} is stored as {min(lossy)} already, and quantizing it once more loses more than quantizing the original "
                "does; convert the BF16 model, or allow it",
                "refused", "requantize",
            )  # fmt: skip
        rows.append(Row(name, shape, stored.pop() if len(stored) == 1 else "mixed", kind, n_bytes, parts[name]))
    described = source.metadata(config, chosen.file_type, sum(row.n_weights for row in rows))
    if importance is not None:
        n_known = sum(importance.knows(row.name, row.shape) for row in rows)
        if not n_known:
            raise UserError("the importance matrix knows none of the model's tensors: it is of another model")
        described |= importance.metadata(n_known)
    for key, value in (overrides or {}).items():
        wanted, found = _kind(described.get(key, value)), _kind(value)
        if wanted != found:  # no reader would take the file, which is noticed only when it is written
            raise UserError(f"{key} is {wanted} in a GGUF file, and {found} was given: {brief(value)}", "usage")
    return Plan(source, config, chosen, rows, described | dict(overrides or {}), split_bytes, importance)


def _kind(value: MetadataValue) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    names = {bool: "true or false", int: "a whole number (int)", float: "a number (float)", str: "a text (str)"}
    return names.get(type(plain), "a list")
