"""Kernels are compiled once, in parallel, by whoever comes first; old folders go; a CPU that multiplies wrongly is found out."""

import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from glmrun import warmup
from glmrun.kernels.compiled import self_test
from glmrun.kernels.simd.target import has_neon
from glmrun.machine import cache_folder

CALLEES: list[set[int]] = [set(), set(), {0}, {0, 1}, {2, 3}, set(), {4}]


class FakeWorker:
    """Says that it has compiled a kernel as soon as it is told to; keeps a common record of the order."""

    def __init__(self, events: queue.SimpleQueue, order: list[int], failing: int | None = None) -> None:
        self.kernel: int | None = None
        self._events, self._order, self._failing = events, order, failing
        events.put((self, str(len(CALLEES))))

    def compile(self, kernel: int) -> None:
        self.kernel = kernel
        self._order.append(kernel)
        self._events.put((self, "" if kernel == self._failing else str(kernel)))


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_each_kernel_is_compiled_once_and_after_its_callees(n_workers: int) -> None:
    events: queue.SimpleQueue = queue.SimpleQueue()
    order: list[int] = []
    seen: list[tuple[int, int]] = []
    for _ in range(n_workers):
        FakeWorker(events, order)
    assert warmup._hand_out(CALLEES, events, lambda text, done, total: seen.append((done, total)))
    assert sorted(order) == list(range(len(CALLEES)))
    assert all(order.index(callee) < order.index(i) for i, below in enumerate(CALLEES) for callee in below)
    assert seen == [(done, len(CALLEES)) for done in range(len(CALLEES) + 1)]


def test_a_worker_that_dies_ends_the_sharing() -> None:
    events: queue.SimpleQueue = queue.SimpleQueue()
    order: list[int] = []
    FakeWorker(events, order, failing=2)
    assert not warmup._hand_out(CALLEES, events, lambda *_: None)


def _python(code: str, cache: Path, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "GLMRUN_CACHE_DIR": str(cache), "PYTHONPATH": os.getcwd(), **environment}
    return subprocess.run([sys.executable, "-c", code], input=given, env=env, capture_output=True, text=True, timeout=300)


def test_a_start_with_compiled_kernels_reads_nothing_that_only_compiling_needs() -> None:
    code = "import sys, glmrun.forward; print('numba.np.arraymath' in sys.modules)"
    assert [_python(code, cache_folder()).stdout for _ in range(2)][1] == "False\n"  # the first may have compiled


def test_a_worker_compiles_into_the_cache(tmp_path: Path) -> None:
    result = _python("import sys; from glmrun.warmup import serve; serve(sys.stdin, sys.stdout)", tmp_path, "1\n0\n")
    n, *done = result.stdout.split()
    assert int(n) > 20 and done == ["1", "0"], result.stderr
    assert len(list(tmp_path.rglob("*.nbc"))) == 2


def test_the_list_of_kernels_is_found_and_its_order_fits() -> None:
    code = (
        "from glmrun.kernels.compiled import cache as kernels; kernels.defer(); import glmrun.forward\n"
        "names = [k.jitted.py_func.__name__ for k in kernels.registered]\n"
        "assert not any(k.jitted.overloads for k in kernels.registered)\n"
        "assert [k.entry for k in kernels.registered][-1] and names[-1] == 'forward'\n"
        "print(*sorted(names[i] for i in kernels.callees(len(names) - 1)))"
    )
    result = _python(code, cache_folder())
    assert {"attention", "dense_ffn", "logits", "moe_ffn"} <= set(result.stdout.split()), result.stderr


def test_without_a_folder_nothing_is_cached(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _python(
        "from glmrun.kernels.compiled import cache as kernels; print(kernels.folder, kernels.are_compiled())", tmp_path / "file"
    )
    assert result.stdout.split() == ["None", "False"], result.stderr


def test_the_second_program_waits_for_the_first(tmp_path: Path) -> None:
    said: queue.SimpleQueue = queue.SimpleQueue()
    entered = threading.Event()

    def second() -> None:
        with warmup._alone(tmp_path, lambda text, done, total: said.put(text)):
            entered.set()

    with warmup._alone(tmp_path, lambda *_: said.put("never")):
        thread = threading.Thread(target=second)
        thread.start()
        assert "waiting" in said.get(timeout=60) and not entered.is_set()
    thread.join(timeout=60)
    assert entered.is_set() and said.empty()


def test_folders_without_use_are_removed(tmp_path: Path) -> None:
    now = time.time()
    for name, days, whole in (("ours", 90, True), ("used", 29, True), ("old", 31, True), ("broken", 31, False), ("new", 0, False)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "some.nbc").write_text("")
        if whole:
            (folder / "complete").touch()
            os.utime(folder / "complete", (0, now - days * 86400))
        os.utime(folder, (0, now - (days if not whole else 90) * 86400))
    warmup._remove_old(tmp_path / "ours", now)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["new", "ours", "used"]


def test_use_is_noted_once_a_day(tmp_path: Path) -> None:
    mark = tmp_path / "complete"
    mark.touch()
    os.utime(mark, (0, time.time() - 3600))
    before = mark.stat().st_mtime
    warmup._note_use(tmp_path)
    assert mark.stat().st_mtime == before
    os.utime(mark, (0, time.time() - 90000))
    warmup._note_use(tmp_path)
    assert mark.stat().st_mtime > before


def _dots(*addresses: int, spoil: bool = False) -> None:
    """self_test.compiled() in NumPy; `spoil` saturates sums of products to 16 bits, as the older instruction does."""
    unsigned, signed, n, once, twice, codes, pairs = addresses

    def at(address: int, dtype: type, columns: int) -> np.ndarray:
        import ctypes

        raw = (ctypes.c_char * (n * columns * np.dtype(dtype).itemsize)).from_address(address)
        return np.frombuffer(raw, dtype).reshape(n, columns)

    x, y = (at(address, np.int8, 64).astype(np.int64) for address in (unsigned, signed))
    first = x if has_neon() else at(unsigned, np.uint8, 64).astype(np.int64)
    at(codes, np.float32, 16)[:] = (first * y).reshape(n, 16, 4).sum(-1)
    both = np.einsum("ngrk,ngck->ngrc", x.reshape(n, 4, 2, 8), y.reshape(n, 4, 2, 8))  # int64 (n, 4, rows, columns)
    at(pairs, np.float32, 16)[:] = both.reshape(n, 16)
    products = at(unsigned, np.uint8, 64).astype(np.int64) * at(signed, np.int8, 64)
    twos = products.reshape(n, 16, 2, 2).sum(-1)
    sums = (twos.clip(-32768, 32767) if spoil else twos).sum(-1)
    at(once, np.float32, 16)[:] = sums
    at(twice, np.float32, 16)[:] = 2 * sums


def test_the_compiled_dot_is_right() -> None:
    assert self_test.is_right(self_test.compiled()) and self_test.is_right(_dots)


def test_a_wrong_dot_is_found_said_once_and_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = lambda *arguments: _dots(*arguments, spoil=True)  # noqa: E731
    assert not self_test.trusts_dot(tmp_path, wrong)
    assert "portable code is used" in capsys.readouterr().err
    assert not self_test.trusts_dot(tmp_path, _dots) and capsys.readouterr().err == ""
    assert self_test.trusts_dot(None, _dots) and not self_test.trusts_dot(None, lambda *_: None)


def test_a_distrusted_instruction_is_not_compiled(tmp_path: Path) -> None:
    code = (
        "from glmrun.kernels.simd import target as simd; from glmrun.kernels.compiled import self_test\n"
        "self_test.is_right = lambda dots: False\n"
        "simd.name() != 'portable' or exit()\n"
        "import glmrun.kernels.compiled.cache as k\n"
        "assert simd.name() == 'portable'\n"
        "print(k.folder.name, len(list(k.folder.parent.iterdir())))"
    )
    first, second = (_python(code, tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout and second.stderr == ""
    assert not first.stdout or ("wrong results" in first.stderr and first.stdout.split()[1] == "2")


def test_without_docstrings_kernels_have_a_folder_of_their_own(tmp_path: Path) -> None:
    """Their functions are others to Numba: in a folder that counts as complete each would be compiled again, in silence."""
    code = "from glmrun.kernels.compiled.cache import folder; print(folder)"
    folders = {_python(code, tmp_path, PYTHONOPTIMIZE=level).stdout for level in ("", "2")}
    assert len(folders) == 2 and all(folders)


def test_half_width_instruction_where_the_cpu_has_only_that(tmp_path: Path) -> None:
    """Alder Lake's AVX-VNNI: compiled here, not run."""
    code = (
        "from glmrun.kernels.simd import target as simd; from glmrun.kernels.compiled import self_test\n"
        "code = ' '.join(self_test.compiled().inspect_asm().values())\n"
        "print(simd.dot_bits(), 'vpdpbusd' in code and 'ymm' in code and 'zmm' not in code)"
    )
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        pytest.skip("an x86-64 target")
    target = {"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c,+avxvnni", "GLMRUN_SIMD": ""}
    assert _python(code, tmp_path, **target).stdout.split() == ["256", "True"]


@pytest.mark.parametrize(
    ("features", "asked", "answer"),
    [
        ("+neon,+dotprod,+i8mm", "", "neon-i8mm"),
        ("+neon,+dotprod,+i8mm", "neon-dotprod", "neon-dotprod"),
        ("+neon,+dotprod", "", "neon-dotprod"),
        ("+neon,+dotprod", "neon-i8mm", "this processor runs neon-dotprod, portable"),
        ("+neon,+dotprod", "avx2", "this processor runs neon-dotprod, portable"),
        ("+neon,+dotprod", "portable", "portable"),
        ("+neon", "", "portable"),
    ],
)
def test_targets_of_arm(features: str, asked: str, answer: str, tmp_path: Path) -> None:
    code = "from glmrun.kernels.simd import target\ntry: print(target.name())\nexcept Exception as why: print(why)"
    found = _python(code, tmp_path, NUMBA_CPU_NAME="cortex-a76", NUMBA_CPU_FEATURES=features, GLMRUN_SIMD=asked)
    assert found.stdout.strip().endswith(answer), found.stderr


def test_another_place_of_the_same_sources_finds_the_same_code(tmp_path: Path) -> None:
    import glmrun.forward
    from glmrun.kernels.compiled import cache as kernels

    assert kernels.folder is not None
    root = Path(glmrun.forward.__file__).parent.parent
    for package in ("glmrun", "quant"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = {path: path.stat().st_mtime_ns for path in kernels.folder.rglob("*.nb?")}
    code = "import glmrun.forward as f; print(f.__file__); from glmrun.kernels.compiled.cache import folder; print(folder)"
    result = _python(code, cache_folder(), PYTHONPATH=str(tmp_path), PYTHONSAFEPATH="1")
    assert result.stdout.split() == [str(tmp_path / "glmrun" / "forward.py"), str(kernels.folder)], result.stderr
    assert {path: path.stat().st_mtime_ns for path in kernels.folder.rglob("*.nb?")} == before


def test_a_folder_that_is_complete_is_used_though_it_cannot_be_written(tmp_path: Path) -> None:
    """As in an image that was made with glmrun warmup: every start there compiled all kernels again."""
    code = (
        "import errno, os, sys\n"
        "def hook(event, given):\n"
        "    writes = event == 'open' and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)\n"
        "    writes = writes or event in ('os.mkdir', 'os.utime', 'os.rename', 'os.remove')\n"
        "    if writes and not str(given[0]).startswith('/dev/'):\n"
        "        raise OSError(errno.EROFS, 'Read-only file system', given[0])\n"
        "sys.addaudithook(hook)\n"
        "import glmrun\n"
        "from glmrun.kernels.compiled import cache\n"
        "from glmrun.store.nano import nano_path\n"
        "with glmrun.load(nano_path('Q8_0')) as model: assert model.logits([1, 2]).shape == (2, 2048)\n"
        "from glmrun.forward import forward\n"
        "print(cache.folder, cache.are_compiled(), dict(forward.stats.cache_hits) != {}, dict(forward.stats.cache_misses))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
    glmrun_once = [sys.executable, "-m", "glmrun", "run", "nano", "hi", "--max-tokens", "1"]
    assert subprocess.run(glmrun_once, env=environment, capture_output=True).returncode == 0  # kernels and nano are there
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-3:] == ["True", "True", "{}"], done
