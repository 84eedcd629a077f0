"""Experts of a model that is larger than memory: asked for as soon as they are chosen, waited for in whole pieces.

A page that is not there costs a fault, and the system then reads what stands around it, mostly what nobody wants; or 4 KiB at a
time. So before a step touches an expert it asks for exactly its bytes, of several experts at once, since a disk is at its best
with many requests. Only steps whose `from_disk` is set come here. What the system can't do it leaves out, and pages come by faults.

Bytes that a disk fails to read are never touched, which would end the process with a signal: the step is cancelled, and has failed.
Counted are each expert's uses, a step's as one, and of how many bytes how many were missing when they were asked for.
"""

import mmap

from numba import int32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import layer_record, model_record, step_record, weight_record, worker_record
from glmrun.kernels.matmul import address_of
from glmrun.kernels.simd.atomic import atomic_store
from glmrun.kernels.simd.memory import load_i64, store_i64
from glmrun.kernels.team import CANCEL, first_piece, leave, next_piece
from quant.system import POPULATE_READ, WILL_NEED

PAGE = mmap.PAGESIZE
LOOKED_AT = 512  # pages whose state is asked at once; a byte of the worker's `resident` for each
AHEAD = 12  # experts that are on their way while one is computed: enough for any disk, a small part of a small memory
LIKELY = 4  # times that each expert is chosen on average: so many tokens use nearly all of them
TRIES = 3  # times that pages are asked for before their disk has failed; a signal may end one
LOOKS, BLIND = 1, 2  # values of from_disk: the system reports which pages are there, or only to a file's owner and writers
_ALL = 0x0101010101010101  # eight pages are there

_madvise = types.ExternalFunction("madvise", int32(int64, int64, int32))
_mincore = types.ExternalFunction("mincore", int32(int64, int64, int64))


@kernel(int64(int64, int64, int64))
def is_resident(start, n_bytes, found):
    """Whether all pages from a page's address on are in memory; found has LOOKED_AT bytes of room."""
    for at in range(0, n_bytes, LOOKED_AT * PAGE):
        n = (min(n_bytes - at, LOOKED_AT * PAGE) + PAGE - 1) // PAGE
        store_i64(found + (n - 1) // 8 * 8, _ALL)  # the bytes behind the last page
        if _mincore(start + at, n * PAGE, found) != 0:
            return 0
        for i in range(0, n, 8):
            if load_i64(found + i) & _ALL != _ALL:
                return 0
    return 1


@kernel(int64(step_record, int64, int64, worker_record))
def _ask(s, start, n_bytes, w):
    """Have bytes on their way; whether they are in memory, as far as the system reports it."""
    first = start // PAGE * PAGE
    n_bytes = start + n_bytes - first
    if s.from_disk == LOOKS and is_resident(first, n_bytes, w.resident):
        return 1
    _madvise(first, n_bytes, int32(WILL_NEED))
    return 0


@kernel(int64(step_record, weight_record, int64, int64, int64, worker_record))
def arrive(s, weight, which, first, end, w):
    """Return when rows first to end - 1 of a stack's matrix are in memory, as far as the system can tell; whether they may be read.

    If their disk fails the step is cancelled.
    """
    if not s.from_disk:
        return 1
    start, n_bytes = address_of(weight, (which, first, end)), (end - first) * weight.row_bytes
    if _ask(s, start, n_bytes, w):
        return 1
    page = start // PAGE * PAGE
    for _ in range(TRIES):
        if _madvise(page, start + n_bytes - page, int32(POPULATE_READ)) == 0:
            return 1
    if not s.populates:
        return 1
    w.failed = 1
    atomic_store(w.flags + CANCEL, 1)
    return 0


@kernel(int64(model_record, step_record, int64, int64))
def used(m, s, e, n):
    """The n-th expert from e on that has tokens; n_routed_experts if there are not so many."""
    while e < m.n_routed_experts:
        if load_i64(s.first + e * 16) < load_i64(s.first + e * 16 + 16):
            if n == 0:
                return e
            n -= 1
        e += 1
    return e


@kernel(int64(layer_record, step_record, int64, worker_record))
def _ask_expert(layer, s, e, w):
    """Have all of an expert on its way; how many bytes of it were missing."""
    missing = 0
    for weight in (layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps):
        n_bytes = weight.rows * weight.row_bytes
        if not _ask(s, address_of(weight, (e, 0, weight.rows)), n_bytes, w):
            missing += n_bytes
    return missing


@kernel(types.void(model_record, layer_record, step_record, int64, worker_record))
def _ask_used(m, layer, s, e, w):
    """The same for an expert that the step uses, and count it: no other thread asks for this one."""
    w.missing += _ask_expert(layer, s, e, w)
    for weight in (layer.ffn_gate_exps, layer.ffn_up_exps, layer.ffn_down_exps):
        w.wanted += weight.rows * weight.row_bytes
    uses = s.uses + (layer.index * m.n_routed_experts + e) * 8
    store_i64(uses, load_i64(uses) + 1)


@kernel(types.void(model_record, layer_record, step_record, worker_record))
def ask_first(m, layer, s, w):
    """As soon as experts are chosen: ask for the first of them, pieces of work that no thread waits for."""
    if not s.from_disk:
        return
    piece = first_piece(w)
    while piece < AHEAD:
        e = used(m, s, 0, piece)
        if e < m.n_routed_experts:
            _ask_used(m, layer, s, e, w)
        piece = next_piece(w)
    leave(w, AHEAD)


@kernel(types.void(model_record, layer_record, step_record, int64, worker_record))
def ask_next(m, layer, s, e, w):
    """When the first piece of expert e is drawn: ask for the one that stands AHEAD behind it."""
    if s.from_disk:
        e = used(m, s, e, AHEAD)
        if e < m.n_routed_experts:
            _ask_used(m, layer, s, e, w)


@kernel(types.void(model_record, layer_record, step_record, worker_record))
def ask_likely(m, layer, s, w):
    """Before the router of a layer is asked, by one thread while the others begin: many tokens will use its first experts, too."""
    likely = s.n_tokens * m.num_experts_per_tok >= LIKELY * m.n_routed_experts
    if s.from_disk and likely and w.thread == 0 and not layer.is_dense:
        for e in range(min(AHEAD, m.n_routed_experts)):
            _ask_expert(layer, s, e, w)
