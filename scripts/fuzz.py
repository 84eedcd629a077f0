"""Open damaged files by the thousand: each gives a model or one line, in time and in memory, and no process dies of it.

python scripts/fuzz.py -n 100000 --out FILE          # both readers; totals as JSON
python scripts/fuzz.py gguf -n 1 --first 4711        # one mutant again, with its traceback
python scripts/fuzz.py gguf -n 1 --first 4711 --save mutant.gguf

What is accepted also runs: every address that kernels get is proven to lie inside a mapping or an array, one step is computed,
the experts that were chosen are checked, one token is drawn.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from mutants import Pieces, damage_bytes, gguf_mutant, json_mutant, text_of

from quant.formats import by_ggml_type

if TYPE_CHECKING:
    from glmrun.engine.model import Model
    from quant.plan import Plan

ROOT = Path(__file__).parent.parent
SECONDS, GROWTH, ADDRESSES = 2.0, 256 << 20, 16 << 30  # limits of one mutant: CPU time, memory beyond the largest so far; of all
SILENCE = 1800  # seconds without a new mutant after which a process counts as hung; the machine may be busy
READERS = ("gguf", "safetensors")


class Hang(BaseException):
    """A mutant that took longer than SECONDS."""


class Broken(Exception):
    """A mutant after which something is not as it should be."""


# ---- one mutant ------------------------------------------------------------------------------------------------------


@cache
def _small_model() -> Pieces:
    """A model of 0.5 MB with checksums, with tensors in all formats that convert writes, and some others, and with fused ones."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.foreign_file import Parts, random_blocks  # type: ignore[import-not-found]
    from support.tiny_model import ODD, write_tiny  # type: ignore[import-not-found]

    from quant.checksums import blank_metadata, seal
    from quant.gguf_header import padding

    config = replace(
        ODD, hidden_size=256, num_hidden_layers=2, intermediate_size=64, moe_intermediate_size=32, n_routed_experts=4,
        num_experts_per_tok=2, num_attention_heads=2, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16,
        v_head_dim=32, vocab_size=320, num_nextn_predict_layers=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts.read(write_tiny(Path(folder) / "model.gguf", config, "everything").path)
        kinds = {"ffn_gate_exps": "Q5_K", "ffn_up_exps": "Q5_K", "ffn_gate_shexp": "Q3_K", "ffn_up_shexp": "IQ4_XS"}
        for name, kind in kinds.items():
            name = f"blk.1.{name}.weight"
            parts.blocks[name], parts.formats[name] = random_blocks(kind, len(parts.blocks[name]), 256, 1 / 16), kind
        parts.fuse_experts()
        parts.fuse_keys("Q8_0", "blk.1.")
        sums = [hashlib.sha256(blocks.data).hexdigest() for blocks in parts.blocks.values()]
        whole = parts.write(Path(folder) / "mixed.gguf", metadata=parts.metadata | blank_metadata(len(sums))).read_bytes()
        n_data = sum(blocks.nbytes + padding(blocks.nbytes) for blocks in parts.blocks.values())
        return Pieces.cut(seal(whole[:-n_data], sums) + whole[-n_data:])


@cache
def _small_checkpoint() -> dict[str, bytes]:
    """{file name: content} of a model folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.checkpoint_folder import SMALL, write_folder  # type: ignore[import-not-found]

    config = replace(
        SMALL, hidden_size=32, num_hidden_layers=2, intermediate_size=32, moe_intermediate_size=32, n_routed_experts=2,
        num_attention_heads=2, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
        vocab_size=288,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        written = write_folder(Path(folder) / "model", config, n_shards=2)
        return {path.name: path.read_bytes() for path in written.iterdir()}


def mutant(reader: str, seed: int, index: int) -> Any:
    """bytes of a GGUF file, or {name: content} of the files of a checkpoint that are damaged."""
    rng = np.random.default_rng([seed, READERS.index(reader), index])
    if reader == "gguf":
        return gguf_mutant(_small_model(), rng)
    files = _small_checkpoint()
    name = str(rng.choice([n for n in sorted(files) if n.endswith((".safetensors", ".json"))]))
    raw = files[name]
    if not name.endswith(".safetensors"):
        raw = text_of(json_mutant(json.loads(raw), rng), rng)
        return {name: damage_bytes(raw, rng, len(raw)) if rng.random() < 0.2 else raw}
    n_header = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.5:
        header = text_of(json_mutant(json.loads(raw[8 : 8 + n_header]), rng), rng)
        return {name: len(header).to_bytes(8, "little") + header + raw[8 + n_header :]}
    return {name: damage_bytes(raw, rng, 8 + n_header)}


def try_gguf(raw: bytes, folder: Path, index: int) -> str:
    """Open the mutant and run what opens; the kind of outcome."""
    import glmrun
    from glmrun.engine.passes import Run
    from quant.errors import UserError

    path = folder / f"{index}.gguf"
    path.write_bytes(raw)
    try:
        look(path, raw == _small_model().join())
        model = glmrun.load(path, n_ctx=8, n_threads=1)
    except UserError as why:
        _check_line(why)
        return "refused"
    finally:
        path.unlink()  # a file that is rewritten would be another hazard: tests/test_watch.py
    check_addresses(model)
    sequence, token = model.latest, len(raw) % model.config.vocab_size
    model.runner.step([Run(sequence, np.array([token], np.int64), sequence.logits, ahead=True)])  # NaN, too
    check_experts(model)
    if not all(0 <= guessed < model.config.vocab_size for guessed in model.runner.guess(sequence, token, 2)):
        raise Broken("the prediction layer guesses what is no token")
    sequence.truncate(0)
    try:
        tokens = [chunk.token for chunk in model.generate("a b", max_tokens=1, seed=1) if chunk.token is not None]
    except UserError as why:
        _check_line(why)
        return "refused before its first token"
    if not all(0 <= token < model.config.vocab_size for token in tokens) or not np.isfinite(model.latest.logits).all():
        raise Broken(f"tokens {tokens} of {model.config.vocab_size}, finite logits: {np.isfinite(model.latest.logits).all()}")
    return "ran"


def look(path: Path, is_whole: bool) -> None:
    """What inspect, plan, convert and verify do with the file; UserError if the first three refuse it."""
    from glmrun.gguf.source import GGUFSource
    from glmrun.gguf.verify import verify
    from glmrun.measure.model_file import model_facts, plain_metadata
    from glmrun.measure.plan import demand_of_file
    from quant.errors import UserError
    from quant.plan import plan

    try:
        intact = all(step.intact for step in verify(path, 1))
    except UserError as why:
        _check_line(why)
        intact = False
    if intact != is_whole:
        raise Broken(f"verify says {'intact' if intact else 'damaged'}")
    source = GGUFSource.open(path)
    json.dumps([model_facts(source.file, source.config), plain_metadata(source.file)], allow_nan=False)
    demand_of_file(source.file, source.config)
    _plan_bytes(plan(source, "Q8_0", requantize=True))


def _plan_bytes(planned: "Plan") -> None:
    """Build the header that a conversion would write."""
    if not sum(part.n_bytes for part in planned.parts) > 0:
        raise Broken("a conversion to nothing")


def try_safetensors(files: dict[str, bytes], folder: Path, index: int) -> str:
    """Open the checkpoint and read all of it; the kind of outcome."""
    from quant.checkpoint import Checkpoint
    from quant.errors import UserError
    from quant.plan import plan

    for name, raw in (_small_checkpoint() if not any(folder.iterdir()) else {}).items():
        (folder / name).write_bytes(raw)
    try:
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
        checkpoint = Checkpoint.open(folder)
        for tensor in checkpoint.tensors.values():
            n_rows = int(np.prod(tensor.shape[:-1]))
            if tensor.read_rows(0, n_rows).shape != (n_rows, tensor.row_bytes):
                raise Broken(f"{tensor.name}: rows of another shape")
        _plan_bytes(plan(checkpoint, "Q8_0"))
    except UserError as why:
        _check_line(why)
        return "refused"
    finally:
        for name in files:
            (folder / name).write_bytes(_small_checkpoint()[name])
    return "read"


def _check_line(why: Exception) -> None:
    text = str(why)
    if "\n" in text or not text or len(text) > 1000:
        raise Broken(f"not one line: {text[:200]!r}")


def check_addresses(model: "Model") -> None:
    """Every address in the kernels' tables, with the bytes that follow from its record, lies in one array that the model owns."""
    weights, c, ahead = model.weights, model.config, model.weights.next_token
    owned = [(a.ctypes.data, a.nbytes) for a in weights._arrays]
    owned += [(m.ctypes.data, (len(m) - 1) * m.strides[0] + m.shape[1]) for m in (t.matrices for t in weights.tensors.values())]
    copies = {"ffn_gate_exps": c.n_routed_experts, "attn_k_b": c.num_attention_heads, "attn_v_b": c.num_attention_heads}
    copies |= dict.fromkeys(("ffn_up_exps", "ffn_down_exps"), c.n_routed_experts)
    widths = {"attn_norm": c.hidden_size, "ffn_norm": c.hidden_size, "output_norm": c.hidden_size, "attn_q_a_norm": c.q_lora_rank}
    widths |= {"attn_kv_a_norm": c.kv_lora_rank, "exp_probs_b": c.n_routed_experts}
    stacks = [] if ahead is None else [ahead.lower, ahead.embedding, ahead.state, ahead.layer]
    for record in (weights.model, *weights.layers, *(r for s in stacks for r in (s.model, *s.layers))):
        for name in record.dtype.names:
            field = record[name]
            if field.dtype.names and int(field["address"]):
                address, last = int(field["address"]), by_ggml_type(int(field["format"])).row_bytes(int(field["columns"]))  # type: ignore[union-attr]
                n_bytes = (int(field["rows"]) - 1) * int(field["row_bytes"]) + last  # of a matrix, then of all
                n_bytes += (copies.get(name, 1) - 1) * int(field["stride"])
            elif name in widths:
                address, n_bytes = int(field), 4 * widths[name]
            else:
                continue
            if address and not any(at <= address and address + n_bytes <= at + size for at, size in owned):
                raise Broken(f"{name}: {n_bytes} bytes at {address:#x} that no array holds")


def check_experts(model: "Model") -> None:
    """The last step chose different experts that exist."""
    c, step = model.config, model.runner.workspace.step
    chosen = list((ctypes.c_int64 * c.num_experts_per_tok).from_address(int(step["expert"])))
    differ = len(set(chosen)) == len(chosen) and all(0 <= e < c.n_routed_experts for e in chosen)
    if c.num_hidden_layers > c.first_k_dense_replace and not differ:
        raise Broken(f"experts {chosen} of {c.n_routed_experts}")


# ---- many ------------------------------------------------------------------------------------------------------------


def run(reader: str, seed: int, indexes: range, folder: Path, note: Any = lambda index: None) -> dict[str, Any]:
    """Try the mutants in this process; counts of outcomes, and failures as [index, what]."""
    outcomes: Counter[str] = Counter()
    failures: list[list[Any]] = []
    attempt = try_gguf if reader == "gguf" else try_safetensors
    attempt(mutant(reader, seed, 0), folder, -1)  # what is loaded once does not count as growth
    before, fds, threads, slowest = _largest(), _descriptors(), threading.active_count(), 0.0
    old = signal.signal(signal.SIGPROF, _hang)
    for index in indexes:
        note(index)
        made, largest, began = mutant(reader, seed, index), _largest(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcomes[attempt(made, folder, index)] += 1
        except (Exception, Hang) as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            failures.append([index, f"{type(error).__name__}: {str(error)[:200]} ({Path(at.filename).name}:{at.lineno})"])
            if len(indexes) == 1:
                traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - began)
        if _largest() - largest > GROWTH:
            failures.append([index, f"grew by {(_largest() - largest) >> 20} MiB"])
    signal.signal(signal.SIGPROF, old)
    for _ in range(100):  # threads of the last models end
        if _descriptors() <= fds + 4 and threading.active_count() <= threads + 4:
            break
        gc.collect()
        time.sleep(0.1)
    else:
        failures.append([-1, f"{_descriptors() - fds} descriptors, {threading.active_count()} threads left"])
    return {
        "outcomes": dict(outcomes),
        "failures": failures,
        "slowest CPU seconds": round(slowest, 3),
        "growth MiB": (_largest() - before) >> 20,
    }


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang(f"more than {SECONDS} s of CPU time")


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _worker(reader: str, seed: int, first: int, end: int, progress: str) -> None:
    """Try a range in a process with limits; the last line of output is JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    where = os.open(progress, os.O_WRONLY | os.O_CREAT)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        found = run(reader, seed, range(first, end), Path(folder), lambda i: os.pwrite(where, f"{i:012}".encode(), 0))
    print(json.dumps(found))


def fuzz(reader: str, seed: int, first: int, n: int, jobs: int) -> dict[str, Any]:
    """n mutants in several processes that are started again where one dies; totals."""
    import glmrun.engine.model  # noqa: F401  # compiles the kernels, if need be, before a process is timed

    total: dict[str, Any] = {"mutants": n, "seed": seed, "outcomes": Counter(), "failures": [], "died": 0}
    total |= {"slowest CPU seconds": 0.0, "growth MiB": 0}
    todo, lock = [range(at, min(at + 2500, first + n)) for at in range(first, first + n, 2500)][::-1], threading.Lock()

    def serve(number: int) -> None:
        while True:
            with lock:
                if not todo:
                    return
                part = todo.pop()
            found, reached = _run_part(reader, seed, part, number)
            with lock:
                if reached is not None:
                    total["died"] += 1
                    if part.stop > reached + 1:
                        todo.append(range(reached + 1, part.stop))
                total["outcomes"].update(found["outcomes"])
                total["failures"] += found["failures"]
                for key in ("slowest CPU seconds", "growth MiB"):
                    total[key] = max(total[key], found.get(key, 0))
                print(f"{reader}: {sum(total['outcomes'].values()):,} of {n:,}, {len(total['failures'])} failures", file=sys.stderr)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total | {"outcomes": dict(total["outcomes"])}


def _run_part(reader: str, seed: int, part: range, number: int) -> tuple[dict[str, Any], int | None]:
    """(what the process found, None) or, if it died or hung, (the failure, the mutant at which it did)."""
    with tempfile.NamedTemporaryFile() as progress:
        arguments = [reader, "--worker", progress.name, "--seed", str(seed), "--first", str(part.start), "-n", str(len(part))]
        process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
        seen, silent = b"", 0  # seconds in which this process ran, too: both may be stopped for a while
        while process.poll() is None:
            try:
                output, _ = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                now = Path(progress.name).read_bytes()
                seen, silent = now, silent + 5 if now == seen else 0
                if silent > SILENCE:
                    process.kill()
        if process.returncode == 0:
            return json.loads(output.splitlines()[-1]), None
        reached = int(Path(progress.name).read_bytes() or part.start)
        done = {"outcomes": {"in a process that died later": reached - part.start}}
        return done | {"failures": [[reached, f"the process ended with {process.returncode}"]]}, reached


def main() -> int:
    """Run the command line; 1 if a mutant failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("reader", nargs="?", choices=READERS)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        _worker(chosen.reader, chosen.seed, chosen.first, chosen.first + chosen.n, chosen.worker)
        return 0
    if chosen.save:
        chosen.save.write_bytes(mutant("gguf", chosen.seed, chosen.first))
    totals = {}
    for reader in [chosen.reader] if chosen.reader else READERS:
        if chosen.n == 1:
            with tempfile.TemporaryDirectory() as folder:
                totals[reader] = run(reader, chosen.seed, range(chosen.first, chosen.first + 1), Path(folder))
        else:
            totals[reader] = fuzz(reader, chosen.seed, chosen.first, chosen.n, chosen.jobs)
    text = json.dumps(totals, indent=2)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    return int(any(total["failures"] for total in totals.values()))


if __name__ == "__main__":
    sys.exit(main())
