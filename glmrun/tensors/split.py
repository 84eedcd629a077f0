"""The tensors as the kernels read them; matrices that stand in one tensor are taken apart once, when the model is opened.

    attn_kv_b (heads * (nope + v), latent)             attn_k_b, its rows transposed, and attn_v_b, its rows as they are
    ffn_gate_up_exps (experts, 2 * width, hidden)      ffn_gate_exps, then ffn_up_exps

Rows that only move keep their bytes. Transposed rows need new blocks: F16, unless they were floats already.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from glmrun.gguf.dialects import fused, shared
from glmrun.gguf.file import GGUFFile, TensorInfo
from glmrun.machine import available_cores, available_memory
from quant.config import Config, of_trunk, tensor_shapes
from quant.errors import UserError
from quant.formats import FORMATS

DRAFT_HEAD = 1 << 15  # rows of the prediction layer's head that are read
_CHUNK = 1 << 18  # values that are converted at a time: what they pass through stays in the second-level cache

Converting = Callable[[list[str], int, int], None]  # (lines for the user, bytes made, of how many): first with 0


@dataclass(frozen=True)
class Conversion:
    """How a tensor that the kernels need comes from one that the file has.

    The source's rows lie in groups of `period`; of each group `count` rows from `first` on are taken, transposed or as they are.
    """

    name: str
    shape: tuple[int, ...]
    source: TensorInfo
    format: str  # of the result
    period: int
    first: int
    count: int
    transposed: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of the result."""
        return prod(self.shape[:-1]) * FORMATS[self.format].row_bytes(self.shape[-1])


def plan(file: GGUFFile, config: Config, ahead: bool = False) -> list[Conversion]:
    """What has to be converted before the trunk of the model can run; config_from_gguf() has checked names and shapes.

    ahead   the prediction layer runs, too
    """
    needed = []
    for name, shape in _used(file, config, ahead).items():
        if name in file.tensors:
            continue
        found = fused(config, name)
        assert found is not None
        source, transposed = file.tensors[found[0]], ".attn_k_b." in name
        target = "F16" if transposed and FORMATS[source.format].block_length > 1 else source.format
        needed.append(Conversion(name, shape, source, target, *found[2:], transposed))
    return needed


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


def in_file(file: GGUFFile, config: Config, ahead: bool = False) -> dict[str, TensorInfo]:
    """{name: tensor} of what runs and stands in the file under its own name; `ahead` as in plan()."""
    found = {}
    for name, shape in _used(file, config, ahead).items():
        if name in file.tensors:
            tensor = file.tensors[name]
            whole = len(tensor.rows) == prod(shape[:-1])  # perhaps a stack that the file lists as one matrix
            found[name] = replace(tensor, shape=shape) if whole else first_rows(tensor, shape[0])
    return found


def first_rows(tensor: TensorInfo, n_rows: int) -> TensorInfo:
    """The first rows of a matrix, in place."""
    rows = tensor.rows[:n_rows]
    return TensorInfo(tensor.name, (len(rows), *tensor.shape[1:]), tensor.format, rows.reshape(-1), tensor.offset)


def tensors_in_place(file: GGUFFile, config: Config, ahead: bool = False) -> list[TensorInfo]:
    """The tensors that are read where the file has them, token by token; `ahead` as in plan()."""
    converted = {c.source.name for c in plan(file, config, ahead)}
    return [t for t in in_file(file, config, ahead).values() if t.name not in converted and "nextn.embed_tokens." not in t.name]


def forms_to_run(file: GGUFFile, config: Config, ahead: bool = False) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """{name: (shape, format, bytes)} of the model as it runs, without converting anything; `ahead` as in plan()."""
    forms = {t.name: (t.shape, t.format, t.n_bytes) for t in in_file(file, config, ahead).values()}
    return forms | {c.name: (c.shape, c.format, c.n_bytes) for c in plan(file, config, ahead)}


def notes(conversions: list[Conversion]) -> list[str]:
    """Lines that say what was converted, what it costs and what it changes."""
    kinds: Counter[str] = Counter()
    for c in conversions:
        loss = "values rounded to 11 bits" if c.format != c.source.format else "the same values"
        kinds[f"{c.source.format} in {c.source.name.split('.')[-2]} as {c.format} ({loss})"] += c.n_bytes
    return [f"runs {kind}: {n_bytes / 2**20:,.0f} MiB of memory" for kind, n_bytes in kinds.items()]


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
        names = ", ".join(sorted({c.source.name.split(".")[-2] for c in conversions}))
        raise UserError(
            f"{file.path}: the matrices that stand together in its {names} take {needed / 2**30:.1f} GiB apart, and only "
            f"{free / 2**30:.1f} GiB of memory are free; `glmrun convert` writes a file that runs as it is"
        )
    tensors = in_file(file, config, ahead)
    lines, done = notes(conversions), 0
    if converting and conversions:
        converting(lines, 0, needed)
    sources = {c.source.name: c.source for c in conversions}
    with ThreadPoolExecutor(available_cores()) as pool:
        for c in conversions:
            if c.source.name in sources:  # an encoder would hide what is not finite
                check_finite(file, sources.pop(c.source.name))
            tensors[c.name] = TensorInfo(c.name, c.shape, c.format, _convert(c, pool))
            done += c.n_bytes
            if converting:
                converting(lines, done, needed)
            for watched in file.watched:
                watched.check()
    return tensors, lines


def _convert(c: Conversion, pool: ThreadPoolExecutor) -> np.ndarray:
    """The blocks of the result, uint8 (n_bytes,)."""
    source = c.source.rows.reshape(-1, c.period, c.source.rows.shape[1])[:, c.first : c.first + c.count]  # (groups, count, bytes)
    out = np.empty(c.n_bytes, np.uint8)  # uint8 (n_bytes,)
    if c.transposed:
        heads = out.reshape(len(source), -1)  # uint8 (heads, bytes of a matrix)
        jobs = [pool.submit(_transpose, c, source[i], heads[i]) for i in range(len(source))]
    else:
        groups = out.reshape(*source.shape[:2], -1)  # uint8 (groups, count, bytes of a row)
        jobs = [pool.submit(np.copyto, groups[i, rows], source[i, rows]) for i, rows in _chunks(c, source.shape)]
    for job in jobs:
        job.result()
    return out


def _chunks(c: Conversion, shape: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    step = max(1, _CHUNK // c.shape[-1])
    for i in range(shape[0]):
        for row in range(0, shape[1], step):
            yield i, slice(row, row + step)


def _transpose(c: Conversion, rows: np.ndarray, out: np.ndarray) -> None:
    values = FORMATS[c.source.format].decode(rows)  # float32 (nope, latent)
    out[:] = FORMATS[c.format].encode(values.T).reshape(-1)
