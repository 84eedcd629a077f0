"""The tensors as the kernels read them, where they stand; of those that stand together in one only the keys become a copy.

    ffn_gate_up_exps (experts, 2 * width, hidden)      ffn_gate_exps: of each expert the first rows; ffn_up_exps: the others
    attn_kv_b (heads * (nope + v), latent)             attn_v_b: of each head the last rows; attn_k_b: the first, transposed

Transposed rows need new blocks: F16, unless they were floats already.
"""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np

from glmrun.gguf.dialects import fused, shared
from glmrun.gguf.file import GGUFFile, TensorInfo
from glmrun.machine import available_cores, available_memory
from quant.config import Config, of_trunk, tensor_shapes
from quant.errors import UserError
from quant.formats import FORMATS

DRAFT_HEAD = 1 << 15  # rows of the prediction layer's head that are read

Converting = Callable[[list[str], int, int], None]  # (lines for the user, bytes made, of how many): first with 0


@dataclass(frozen=True)
class Conversion:
    """A stack of matrices that the kernels read the other way round than the file has them."""

    name: str
    source: TensorInfo  # (matrices, rows, columns), in place

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result: (matrices, columns, rows)."""
        n, rows, columns = self.source.shape
        return n, columns, rows

    @property
    def format(self) -> str:
        """Of the result."""
        return "F16" if FORMATS[self.source.format].block_length > 1 else self.source.format

    @property
    def n_bytes(self) -> int:
        """Bytes of the result."""
        return prod(self.shape[:-1]) * FORMATS[self.format].row_bytes(self.shape[-1])


def plan(file: GGUFFile, config: Config, ahead: bool = False) -> list[Conversion]:
    """What has to be converted before the trunk of the model can run; config_from_gguf() has checked names and shapes.

    ahead   the prediction layer runs, too
    """
    used = _used(file, config, ahead)
    return [Conversion(name, _rows_of(file, config, name)) for name in used if name not in file.tensors and ".attn_k_b." in name]


def _used(file: GGUFFile, config: Config, ahead: bool) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of the trunk and, if it is to run, of the prediction layer without what it shares with the trunk.

    Of the layer's head the first DRAFT_HEAD rows: a vocabulary lists its merges by how often they occur in text, so nearly all
    that is ever written stands there, for a fifth of the bytes. A token behind them is never drafted, only drawn.
    """
    used = tensor_shapes(replace(config, num_nextn_predict_layers=0))
    for name, shape in tensor_shapes(config).items() if ahead else ():
        if not (of_trunk(config, name) and shared(file, config, name)):
            used.setdefault(name, (min(shape[0], DRAFT_HEAD), *shape[1:]) if "nextn.shared_head_head." in name else shape)
    return used


def in_place(file: GGUFFile, config: Config, ahead: bool = False) -> dict[str, TensorInfo]:
    """{name: tensor of the file, or some rows of one} of what runs where it stands; `ahead` as in plan()."""
    found = {}
    for name, shape in _used(file, config, ahead).items():
        if name in file.tensors:
            tensor = file.tensors[name]
            whole = len(tensor.rows) == prod(shape[:-1])  # perhaps a stack that the file lists as one matrix
            found[name] = replace(tensor, shape=shape) if whole else first_rows(tensor, shape[0])
        elif ".attn_k_b." not in name:
            found[name] = _rows_of(file, config, name)
    return found


def first_rows(tensor: TensorInfo, n_rows: int) -> TensorInfo:
    """The first rows of a matrix, in place."""
    rows = tensor.rows[:n_rows]
    return TensorInfo(tensor.name, (len(rows), *tensor.shape[1:]), tensor.format, rows.reshape(-1), tensor.offset)


def _rows_of(file: GGUFFile, config: Config, name: str) -> TensorInfo:
    """The rows of `name` in the tensor that holds it among others: a stack in place, under the name of that tensor."""
    found = fused(config, name)
    assert found is not None
    whole, _, period, first, count = found
    tensor = file.tensors[whole]
    row_bytes = tensor.rows.shape[1]
    groups = tensor.data.reshape(-1, period * row_bytes)  # uint8 (matrices, bytes of what stands together)
    rows = groups[:, first * row_bytes : (first + count) * row_bytes]
    return TensorInfo(whole, (len(rows), count, tensor.shape[-1]), tensor.format, rows, tensor.offset + first * row_bytes)


def forms_to_run(file: GGUFFile, config: Config, ahead: bool = False) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """{name: (shape, format, bytes)} of the model as it runs, without converting anything; `ahead` as in plan()."""
    forms = {name: (t.shape, t.format, t.n_bytes) for name, t in in_place(file, config, ahead).items()}
    return forms | {c.name: (c.shape, c.format, c.n_bytes) for c in plan(file, config, ahead)}


def notes(conversions: list[Conversion]) -> list[str]:
    """Lines that say what was converted, what it costs and what it changes."""
    kinds: Counter[str] = Counter()
    for c in conversions:
        loss = "values rounded to 11 bits" if c.format != c.source.format else "the same values"
        kinds[f"the keys in {_field(c)}, {c.source.format}, transposed to {c.format} ({loss})"] += c.n_bytes
    return [f"runs {kind}: {n_bytes / 2**20:,.0f} MiB of memory" for kind, n_bytes in kinds.items()]


def _field(c: Conversion) -> str:
    """blk.1.attn_kv_b.weight -> attn_kv_b."""
    return c.source.name.split(".")[-2]


def tensors_to_run(
    file: GGUFFile, config: Config, converting: Converting | None = None, ahead: bool = False
) -> tuple[dict[str, TensorInfo], list[str]]:
    """({name: tensor in a format that kernels read}, lines for the user): the file's own, in place, or converted copies.

    Uses all cores; tells `converting`, if there is anything to convert, before the first tensor and after each.
    Raises UserError if the copies do not fit into the memory that is free, and for weights that are not finite, and if the
    file is changed meanwhile.
    """
    from glmrun.tensors.finite import check_finite  # loads Numba

    conversions = plan(file, config, ahead)
    needed, free = sum(c.n_bytes for c in conversions), available_memory()
    if needed > free:
        raise UserError(
            f"{file.path}: the keys in its {_field(conversions[0])} take {needed / 2**30:.1f} GiB transposed, and only "
            f"{free / 2**30:.1f} GiB of memory are free; `glmrun convert` writes a file that runs as it is"
        )
    tensors = in_place(file, config, ahead)
    lines, done = notes(conversions), 0
    if converting and conversions:
        converting(lines, 0, needed)
    with ThreadPoolExecutor(available_cores()) as pool:
        for c in conversions:
            check_finite(file, c.source)  # an encoder would hide what is not finite
            tensors[c.name] = TensorInfo(c.name, c.shape, c.format, _convert(c, pool))
            done += c.n_bytes
            if converting:
                converting(lines, done, needed)
            for watched in file.watched:
                watched.check()
    return tensors, lines


def _convert(c: Conversion, pool: ThreadPoolExecutor) -> np.ndarray:
    """The blocks of the result, uint8 (n_bytes,)."""
    out = np.empty(c.n_bytes, np.uint8)  # uint8 (n_bytes,)
    list(pool.map(partial(_transpose, c), c.source.matrices, out.reshape(c.shape[0], -1)))
    return out


def _transpose(c: Conversion, matrix: np.ndarray, out: np.ndarray) -> None:
    """The blocks of one matrix of the source, uint8 (bytes,), to one of the result."""
    values = FORMATS[c.source.format].decode(matrix.reshape(c.source.shape[1], -1))  # float32 (rows, columns)
    out[:] = FORMATS[c.format].encode(values.T).reshape(-1)
