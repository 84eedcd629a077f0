"""The threads: all take part, none runs ahead of a barrier, a cancel reaches them, errors come back."""

import signal
import threading
import time

import numpy as np
import pytest
from numba import int64

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.simd.atomic import atomic_add
from glmrun.kernels.simd.memory import load_i64, store_i64
from glmrun.kernels.team import CANCEL, Team, atomic_load, available_cores, barrier
from quant.errors import UserError


@kernel(int64(int64, int64, int64, int64, int64), entry=True)
def _rounds(slots, n, flags, thread, n_threads):
    """Write one's slot, wait, read the others': returns how often a slot was not as far as it must be."""
    wrong = 0
    for i in range(n):
        store_i64(slots + thread * 128, i)
        barrier(flags, n_threads)
        for other in range(n_threads):
            wrong += load_i64(slots + other * 128) != i
        barrier(flags, n_threads)
    atomic_add(slots + 1024, 1)
    return wrong


@kernel(int64(int64, int64, int64), entry=True)
def _until_cancelled(flags, thread, n_threads):
    while atomic_load(flags + CANCEL) == 0:
        pass
    return 7


def test_a_barrier_holds_everyone() -> None:
    team, slots = Team(), np.zeros(256, np.int64)  # int64 (256,)
    for _ in range(3):
        assert team.run(_rounds, slots.ctypes.data, 200) == 0
    assert slots[128] == 3 * team.n_threads


def test_never_more_threads_than_cores() -> None:
    assert Team(10_000).n_threads == available_cores()
    assert Team(1).n_threads == 1


def test_cancel_from_another_thread() -> None:
    team = Team(1)
    threading.Timer(0.05, team.cancel).start()
    assert team.run(_until_cancelled) == 7
    team.resume()
    slots = np.zeros(256, np.int64)  # int64 (256,)
    assert team.run(_rounds, slots.ctypes.data, 5) == 0


def test_a_signal_at_any_moment_loses_no_thread() -> None:
    """Without care a result is lost between two lines, or a job reaches one thread only: the next barrier then never ends."""

    class Alarm(Exception):
        pass

    fired = 0

    def interrupt(*_: object) -> None:
        nonlocal fired
        fired += 1
        raise Alarm  # which Python drops if it meets an object's finalizer: so the loop looks at `fired`, too

    team, slots = Team(), np.zeros(256, np.int64)  # int64 (256,)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + turn * 5e-7)
                while fired == turn:
                    assert team.run(_rounds, slots.ctypes.data, 3) == 0
            except Alarm:
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fired == 400
    runs = slots[128]
    assert team.run(_rounds, slots.ctypes.data, 5) == 0
    assert slots[128] - runs == team.n_threads


def test_an_error_comes_back_and_the_team_goes_on() -> None:
    team, slots = Team(), np.zeros(256, np.int64)  # int64 (256,)
    with pytest.raises(TypeError):
        team.run(_rounds, "not an address", 1)
    assert team.run(_rounds, slots.ctypes.data, 5) == 0


def test_a_forgotten_team_ends_its_threads() -> None:
    before = set(threading.enumerate())  # those of earlier tests' teams may end meanwhile
    team = Team(1)
    assert len(set(threading.enumerate()) - before) == 1
    del team
    for _ in range(100):
        if not set(threading.enumerate()) - before:
            return
        time.sleep(0.02)
    raise AssertionError("the thread is still there")


def test_a_team_that_can_not_be_whole_leaves_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with few processes allowed."""
    before, start, left = set(threading.enumerate()), threading.Thread.start, [2]

    def limited(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr("glmrun.kernels.team.available_cores", lambda: 3)
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(UserError, match="3 threads are to compute, and the system starts only 2; ask for fewer"):
        Team()
    assert not set(threading.enumerate()) - before
