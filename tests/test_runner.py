"""Who shares a step with whom, and that nobody can hold up the others: an iterator that is left alone, a fork."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.engine import generate
from glmrun.engine.batch import Size, next_batch
from glmrun.engine.pace import LEAST_PIECE, STEP_SECONDS, Pace
from glmrun.engine.passes import Run
from glmrun.engine.runner import PATIENCE
from glmrun.engine.sequence import Sequence

MAX_TOKENS, MAX_RUNS = 528, 16


def test_all_who_write_go_beside_one_piece_of_the_oldest_prompt() -> None:
    waiting = [Size(1), Size(512, n_read=512), Size(1), Size(512, n_read=512), Size(1)]
    assert sorted(next_batch(waiting, MAX_TOKENS, MAX_RUNS)) == [0, 1, 2, 4]
    assert next_batch([], MAX_TOKENS, MAX_RUNS) == []


def test_one_that_must_be_alone_is_alone() -> None:
    assert next_batch([Size(100, alone=True), Size(1)], MAX_TOKENS, MAX_RUNS) == [0]
    assert next_batch([Size(1), Size(100, alone=True), Size(1)], MAX_TOKENS, MAX_RUNS) == [0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_every_step_fits_and_everybody_has_a_turn(seed: int) -> None:
    rng = random.Random(seed)
    row = [
        (i, Size(n, rng.choice([1, 1, 2]), n if n > 1 and rng.random() < 0.8 else 0, rng.random() < 0.05))
        for i in range(rng.randint(1, 60))
        for n in [rng.choice([1, 1, 1, 2, 40, 512])]
    ]
    turns = {i: 0 for i, _ in row}
    steps_without = dict.fromkeys(turns, 0)
    for _ in range(200):
        sizes = [size for _, size in row]
        batch = next_batch(sizes, MAX_TOKENS, MAX_RUNS)
        assert 0 in batch and len(set(batch)) == len(batch)
        chosen = [sizes[i] for i in batch]
        assert sum(size.n_tokens for size in chosen) <= MAX_TOKENS and sum(size.n_runs for size in chosen) <= MAX_RUNS
        assert len(batch) == 1 or not any(size.alone for size in chosen)
        left = [(sizes[i].n_tokens, sizes[i].n_runs) for i in range(len(sizes)) if i not in batch and not sizes[i].alone]
        if not chosen[0].alone:  # what was left out has no room
            n_tokens, n_runs = sum(size.n_tokens for size in chosen), sum(size.n_runs for size in chosen)
            assert all(n_tokens + tokens > MAX_TOKENS or n_runs + runs > MAX_RUNS for tokens, runs in left)
        served = [row[i] for i in batch]
        for i in turns:
            steps_without[i] += 1
        for i, _ in served:
            turns[i] += 1
            steps_without[i] = 0
        assert max(steps_without.values()) < len(row)  # nobody waits for longer than one step for each of the others
        row = [one for one in row if one not in served] + served  # each asks again at once
    assert min(turns.values()) >= 200 // len(row)


def test_a_prompt_that_nobody_reads_on_holds_up_nobody(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PROGRESS_SECONDS", 0.0)
    prompt = np.random.default_rng(1).integers(0, 900, 240).tolist()
    path = tiny_gguf("Q4_K_M", ODD).path
    with glmrun.load(path, n_ctx=256, n_threads=2) as model:
        expected = [chunk.token for chunk in model.generate(prompt, max_tokens=3, temperature=0) if chunk.token is not None]
    with glmrun.load(path, n_ctx=256, n_threads=2) as model:
        held = model.generate(prompt, max_tokens=3, temperature=0)
        next(held), next(held)  # a report from the middle of a step
        other = threading.Thread(target=lambda: list(model.generate([1, 2, 3], max_tokens=2, temperature=0)), daemon=True)
        other.start()
        other.join(30)
        assert not other.is_alive()
        assert [chunk.token for chunk in held if chunk.token is not None] == expected


@pytest.mark.parametrize(("token", "depth"), [(0.0025, 0.003), (0.002, 0.0), (0.015, 0.0151), (0.0004, 0.001)])
def test_pieces_of_a_long_prompt_last_a_second_however_deep_they_stand(token: float, depth: float) -> None:
    """A token takes `token` seconds and `depth` more for each 4,096 positions that it sees; nobody says so beforehand."""
    pace, at, sizes = Pace(), 0, []
    pace.add(64, 32, 64 * (token + 32 / 4096 * depth))
    while at < 32_768:
        n = pace.piece(at, 512)
        seconds = n * (token + (at + n / 2) / 4096 * depth)
        assert seconds < 1.25 * STEP_SECONDS or n == LEAST_PIECE
        assert seconds > 0.75 * STEP_SECONDS or n in (512, LEAST_PIECE)
        pace.add(n, at + n / 2, seconds)
        at, sizes = at + n, [*sizes, n]
    assert pace.seconds(n, at - n) == pytest.approx(seconds, rel=0.1)
    if depth:
        assert sizes[-1] < sizes[0] / 1.5 or sizes[-1] == LEAST_PIECE
        pace.add(64, 32, 64 * (token + 32 / 4096 * depth))
        assert pace.piece(0, 512) == pytest.approx(min(512, STEP_SECONDS / token), rel=0.6)  # another prompt begins


def test_a_machine_that_gets_slower_or_faster_is_followed() -> None:
    pace = Pace()
    assert not pace.known
    pace.add(LEAST_PIECE - 1, 10, 1.0)
    assert not pace.known  # steps of a few tokens say nothing of prompts
    for factor in (1.0, 3.0, 0.5):
        for _ in range(8):
            n = pace.piece(1000, 512) if pace.known else 64
            pace.add(n, 1000, n * 0.004 * factor)
        assert pace.piece(1000, 512) == pytest.approx(min(512, 250 / factor), rel=0.05)
    assert pace.piece(0, 40) == 40
    pace.add(64, 1000, 1e6)
    assert pace.piece(0, 512) == LEAST_PIECE


def test_whoever_writes_is_in_every_step_with_a_piece_of_a_prompt(
    tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next token is asked for moments after the last one: a piece that began before that would hold it up for a second."""
    monkeypatch.setattr("glmrun.engine.runner.PATIENCE", 20.0)
    prompt = np.random.default_rng(1).integers(0, 900, 400).tolist()
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=512, n_threads=2, draft="off") as model:
        model.measure()
        steps: list[tuple[int, int]] = []
        step = model.runner._passes.step

        def seen(runs: list[Run]) -> float | None:
            steps.append((sum(len(run.tokens) > 1 for run in runs), sum(len(run.tokens) == 1 for run in runs)))
            return step(runs)

        monkeypatch.setattr(model.runner._passes, "step", seen)
        monkeypatch.setattr(model.runner.pace, "piece", lambda first, most: LEAST_PIECE)
        biases = dict.fromkeys(model.tokenizer.eog_ids, -100.0)
        writer = model.generate([1, 2, 3], max_tokens=400, temperature=0, logit_bias=biases)
        written = [next(chunk for chunk in writer if chunk.token is not None)]
        with model.runner.answering():  # as the server's thread does before it reads
            reader = threading.Thread(target=lambda: list(model.generate(prompt, max_tokens=1, temperature=0)))
            reader.start()
            written += [chunk for chunk in writer if chunk.token is not None]
            reader.join()
        n_pieces = sum(pieces for pieces, _ in steps[1:])
        assert len(written) == 400 and n_pieces >= len(prompt) // LEAST_PIECE
        alone = [i for i, (pieces, singles) in enumerate(steps) if pieces and not singles and i > 0]
        assert len(alone) <= 1  # the first, if it came first


def test_those_who_write_together_are_in_every_step_together(
    tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each matrix is read once for all: whoever asks first waits a moment for the others."""
    monkeypatch.setattr("glmrun.engine.runner.COMPANY", 1e6)
    monkeypatch.setattr("glmrun.engine.runner.PATIENCE", 20.0)
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=512, n_threads=2, draft="off") as model:
        model.measure()
        steps: list[int] = []
        step, began = model.runner._passes.step, threading.Barrier(4)

        def seen(runs: list[Run]) -> float | None:
            steps.append(len(runs))
            return step(runs)

        monkeypatch.setattr(model.runner._passes, "step", seen)
        biases = dict.fromkeys(model.tokenizer.eog_ids, -100.0)

        def write(i: int) -> None:
            with model.runner.answering():
                began.wait()
                list(model.generate([i, 2, 3], max_tokens=100, temperature=0, logit_bias=biases))

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert steps.count(4) >= 90


def test_a_piece_that_waits_has_nothing_of_the_step_before_it(tiny_gguf: Callable[..., Tiny]) -> None:
    """What share of a piece is done only grows, whatever else runs; it ends with its result."""
    model = glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=512, n_threads=2)
    ids, shares = np.arange(400) % 900, [list[float](), list[float](), list[float]()]

    def read(i: int) -> None:
        sequence = Sequence(*model.weights.cache_shape(512))
        for done in model.runner.watch([Run(sequence, ids, sequence.logits[:0])], 0.0005):
            shares[i].append(done)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in shares:
        assert one == sorted(one) and one[-1] is True
    model.close()


def test_prompts_share_a_step_up_to_their_limit_and_readers_never_wait() -> None:
    row = [Size(70, n_read=70), Size(1), Size(70, n_read=70), Size(30, n_read=30), Size(17)]  # the last one is a draft
    assert sorted(next_batch(row, 528, 16, 100)) == [0, 1, 3, 4]
    assert sorted(next_batch([Size(511, n_read=511), *row], 528, 16, 100)) == [0, 2]  # the oldest, though it is longer
    assert sorted(next_batch([Size(500, n_read=500), *row], 528, 16, 100)) == [0, 2, 5]


def test_a_pace_is_learned_from_steps_with_prompts_and_used_in_company(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=256, n_threads=2) as model:
        runner = model.runner
        list(model.generate([1, 2, 3], max_tokens=5))
        assert not runner.pace.known
        with runner.answering(), runner.answering():
            assert runner.piece(0) == 256
            runner.pace.add(64, 32, 1.0)
            assert runner.piece(0) == 64
        assert runner.piece(0) == 256
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=256, n_threads=2) as model:
        model.measure()
        assert model.runner.pace.known and model.runner.pace.seconds(64, 0) > 0


FORK = """
import os, signal, sys
import glmrun
from quant.errors import UserError

model = glmrun.load(sys.argv[1], n_ctx=64, n_threads=2)
assert list(model.generate([1, 2, 3], max_tokens=2, temperature=0))
child = os.fork()
if child == 0:
    signal.alarm(60)
    for call in (lambda: model.generate([1]), lambda: model.logits([1]), lambda: model.chat([{"role": "user", "content": "x"}])):
        try:
            call()
        except UserError as error:
            assert "load it again in the child" in str(error) and "\\n" not in str(error)
        else:
            sys.exit(3)
    model.close()
    sys.exit(0)  # with all that an interpreter does at its end
_, status = os.waitpid(child, 0)
assert list(model.generate([1, 2, 3], max_tokens=2, temperature=0))
model.close()
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""


def test_a_real_fork_is_told_and_hangs_nowhere(tiny_gguf: Callable[..., Tiny]) -> None:
    arguments = [sys.executable, "-c", FORK, str(tiny_gguf("Q4_K_M", ODD).path)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_only_pieces_of_prompts_wait_for_those_who_write(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft is verified by whoever has just got a token: it would wait for itself."""
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=512, n_threads=2) as model:
        sequence, ids, waits = Sequence(*model.weights.cache_shape(512)), np.arange(100) % 900, list[float]()
        logits = np.zeros((17, model.config.vocab_size), np.float32)  # float32 (17, n_vocab)

        def run(n: int, n_logits: int, exact: bool = False, draft: bool = False) -> None:
            assert model.runner.step([Run(sequence, ids[:n], logits[:n_logits], exact=exact, draft=draft)])

        wait_for = model.runner._news.wait_for
        monkeypatch.setattr("glmrun.engine.runner.COMPANY", 0.0)  # how long who writes waits for those who write
        monkeypatch.setattr(model.runner._news, "wait_for", lambda done, seconds: (waits.append(seconds), wait_for(done, 0.001)))
        run(20, 1)
        for n in (1, 2, 4, 17):
            run(n, n, draft=True)
        run(3, 3, exact=True, draft=True)
        run(20, 1)
        run(5, 0)
        assert waits == [PATIENCE, *[0.0] * 5, PATIENCE, PATIENCE]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python drops one that meets an object's finalizer
def test_a_signal_at_any_moment_leaves_a_runner_that_works(tiny_gguf: Callable[..., Tiny]) -> None:
    """An exception inside a condition's own methods leaves its lock held: the next step would wait for ever.

    Here one comes where each function begins and ends, in turn; a step follows that must work.
    """

    class Alarm(BaseException):
        pass

    left, ended = 0, threading.Event()

    def interrupt(_: object, event: str, __: object) -> None:
        nonlocal left
        left -= event != "c_call"  # before which no signal is handled: that is how a lock is given back
        if left == 0:
            raise Alarm

    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=64, n_threads=2) as model:
        sequence = Sequence(*model.weights.cache_shape(64))
        run = Run(sequence, np.arange(20), sequence.logits)

        def steps() -> None:
            nonlocal left
            for n in range(1, 1000):
                sequence.truncate(0)
                left = n
                sys.setprofile(interrupt)
                try:
                    assert model.runner.step([run])
                except Alarm:
                    pass
                finally:
                    sys.setprofile(None)
                sequence.truncate(0)
                assert model.runner.step([run])
                if left > 0:
                    ended.set()
                    return

        threading.Thread(target=steps, daemon=True).start()
        assert ended.wait(60)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
def test_what_a_signal_raises_in_a_step_is_nobody_elses(
    tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """A timeout of the thread that led was the error of all in its step; or they ran again behind their own tokens, unnoticed."""
    main, extend, raised, ended = threading.get_ident(), Sequence.extend, [], threading.Event()

    def broken(sequence: Sequence, *arguments: object) -> None:
        extend(sequence, *arguments)  # type: ignore[arg-type]
        if threading.get_ident() == main and sequence is not own:
            raised.append(sequence)
            raise kind

    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=64, n_threads=2) as model:
        own, *others = [Sequence(*model.weights.cache_shape(64)) for _ in range(4)]
        tokens, wrong = np.arange(5), list[object]()
        assert model.runner.step([Run(own, tokens, own.logits)])
        expected = own.logits.copy()

        def steps(sequence: Sequence) -> None:
            while not ended.is_set():
                sequence.truncate(0)
                try:
                    assert model.runner.step([Run(sequence, tokens, sequence.logits)])
                except BaseException as error:
                    wrong.append(error)
                if len(sequence.tokens) != 5 or not np.array_equal(sequence.logits, expected):
                    wrong.append(len(sequence.tokens))

        monkeypatch.setattr(Sequence, "extend", broken)
        threads = [threading.Thread(target=steps, args=(sequence,), daemon=True) for sequence in others]
        for thread in threads:
            thread.start()
        for _ in range(10_000):
            own.truncate(0)
            with suppress(kind):
                model.runner.step([Run(own, tokens, own.logits)])
            if len(raised) > 20:
                break
        ended.set()
        for thread in threads:
            thread.join(60)
        assert len(raised) > 20 and not wrong
