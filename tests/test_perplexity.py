"""Perplexity and KL divergence against their definitions, in float64 and position by position."""

import errno
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.tiny_model import Tiny
from test_cli import glmrun as run
from test_cli import refused

import glmrun
from glmrun.cli.perplexity import report
from glmrun.measure.perplexity import score, statistics
from glmrun.measure.reference import Reference, writing
from glmrun.measure.windows import Windows, cut
from quant.errors import UserError

N_VOCAB = 37


class Oracle:
    """A model of N_VOCAB tokens whose logits after a token depend on it and its position alone; noise makes it another model."""

    def __init__(self, noise: float = 0.0, bos: int | None = None) -> None:
        table = np.random.default_rng(1).normal(0, 3, (64, N_VOCAB, N_VOCAB))
        self.table = (table + noise * np.random.default_rng(2).normal(size=table.shape)).astype(np.float32)
        metadata = {"tokenizer.ggml.add_bos_token": bos is not None, "tokenizer.ggml.bos_token_id": bos}
        self.file, self.path = SimpleNamespace(metadata=metadata), Path("oracle.gguf")
        self.config = SimpleNamespace(vocab_size=N_VOCAB)
        self.tokenizer = SimpleNamespace(encode=lambda text, special: [ord(c) % N_VOCAB for c in text])
        self.read: list[list[int]] = []

    def logits_after(self, tokens: np.ndarray, first: int) -> Iterator[np.ndarray]:
        self.read.append(tokens.tolist())
        rows = np.stack([self.table[i, token] for i, token in enumerate(tokens)])[first:]
        yield rows[:3]
        yield rows[3:]

    def log_q(self, ids: np.ndarray) -> np.ndarray:
        """By definition, float64 (n_scored, n_vocab)."""
        n = len(ids)
        rows = np.stack([self.table[i, ids[i]] for i in range(n // 2, n - 1)]).astype(np.float64)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def _text(n: int) -> str:
    return "".join(chr(c) for c in np.random.default_rng(0).integers(32, 122, n))


def _last(steps: Iterator[Any]) -> Any:
    *_, (done, scores) = steps
    return done, scores


def test_the_second_half_of_each_window_is_scored() -> None:
    model = Oracle()
    windows = cut(model, _text(70), 16)  # type: ignore[arg-type]
    assert windows.ids.shape == (4, 16) and windows.n_scored == 7
    done, scores = _last(score(model, windows))  # type: ignore[arg-type]
    expected = np.concatenate([-model.log_q(ids)[np.arange(7), ids[9:]] for ids in windows.ids])
    assert done == 4 and model.read == [ids[:-1].tolist() for ids in windows.ids]
    assert np.abs(np.concatenate(scores.nll) - expected).max() <= 1e-5
    value, error = scores.perplexity
    assert abs(value / np.exp(expected.mean()) - 1) <= 1e-6
    assert abs(error / (value * expected.std() / np.sqrt(27)) - 1) <= 1e-4


def test_a_token_that_begins_every_text_begins_every_window() -> None:
    model = Oracle(bos=5)
    windows = cut(model, _text(40), 16)  # type: ignore[arg-type]
    assert windows.ids[0, 0] == 5 and windows.ids[1, 0] == ord(_text(40)[15]) % N_VOCAB
    _last(score(model, windows))  # type: ignore[arg-type]
    assert [read[0] for read in model.read] == [5, 5] and model.read[1][1:] == windows.ids[1, 1:-1].tolist()


def test_windows_are_as_many_as_fit_or_were_asked_for() -> None:
    model: Any = Oracle()
    assert len(cut(model, _text(63), 16).ids) == 3 and len(cut(model, _text(63), 16, 2).ids) == 2
    with pytest.raises(UserError, match="15 tokens; at least one window of 16"):
        cut(model, _text(15), 16)


def test_the_statistics_are_those_of_the_definitions(tmp_path: Path) -> None:
    base, model = Oracle(), Oracle(noise=0.3)
    windows = cut(base, _text(640), 64)  # type: ignore[arg-type]
    with writing(tmp_path / "base", windows, N_VOCAB) as writer:
        _last(score(base, windows, writer=writer))  # type: ignore[arg-type]
    found = Reference(tmp_path / "base")
    assert (found.windows(model).ids == windows.ids).all()  # type: ignore[arg-type]
    statistic = statistics(_last(score(model, windows, found))[1])  # type: ignore[arg-type]

    places = [(np.arange(31), ids[33:]) for ids in windows.ids]
    ps, qs = [base.log_q(ids) for ids in windows.ids], [model.log_q(ids) for ids in windows.ids]
    kld = np.concatenate([np.sum(np.exp(p) * (p - q), axis=1) for p, q in zip(ps, qs, strict=True)])
    nll, nll_base = (np.concatenate([-x[place] for x, place in zip(xs, places, strict=True)]) for xs in (qs, ps))
    delta = np.exp(-nll) - np.exp(-nll_base)
    same = np.concatenate([p.argmax(1) == q.argmax(1) for p, q in zip(ps, qs, strict=True)])
    n = len(kld)
    assert n == 310 and 0.5 < same.mean() < 1

    def near(found: Any, value: float, error: float) -> bool:
        return bool(abs(found[0] - value) <= 2e-4 * max(abs(value), 0.01) and abs(found[1] - error) <= 1e-3 * error)

    root = np.sqrt(n - 1)
    assert near(statistic["ppl"], np.exp(nll.mean()), np.exp(nll.mean()) * nll.std() / root)
    assert near(statistic["ppl_base"], np.exp(nll_base.mean()), np.exp(nll_base.mean()) * nll_base.std() / root)
    assert near(statistic["kld"], kld.mean(), kld.std() / root)
    assert near(statistic["delta_p"], delta.mean(), delta.std() / root)
    assert near(statistic["ln_ppl_ratio"], (nll - nll_base).mean(), (nll - nll_base).std() / root)
    assert near(statistic["same_top_p"], same.mean(), np.sqrt(same.mean() * (1 - same.mean())) / root)
    assert abs(statistic["rms_delta_p"][0] / np.sqrt(np.mean(delta**2)) - 1) <= 2e-3
    assert abs(statistic["correlation"] - np.corrcoef(nll, nll_base)[0, 1]) <= 1e-4
    assert abs(statistic["ppl_ratio"][0] * statistic["ppl_base"][0] / statistic["ppl"][0] - 1) <= 1e-9
    assert abs(statistic["kld_percentiles"]["90.0%"] - np.quantile(kld, 0.9)) <= 1e-3
    assert statistic["kld_percentiles"]["maximum"] >= statistic["kld_percentiles"]["99.9%"]
    lines = report(statistic).splitlines()
    assert [line[:11] for line in lines[8:21]] == [
        "====== KL d", "Mean    KLD", "Maximum KLD", "99.9%   KLD", "99.0%   KLD", "95.0%   KLD", "90.0%   KLD", "Median  KLD",
        "10.0%   KLD", " 5.0%   KLD", " 1.0%   KLD", " 0.1%   KLD", "Minimum KLD",
    ]  # fmt: skip
    assert lines[1].startswith(f"Mean PPL(Q)                   : {statistic['ppl'][0]:10.6f} ± ") and lines[-1].endswith(" %")


def test_the_reference_file_is_llama_perplexitys(tmp_path: Path) -> None:
    windows = Windows(np.arange(20, dtype=np.int32).reshape(2, 10), None)
    log_q = np.random.default_rng(0).normal(-8, 6, (8, N_VOCAB)).astype(np.float32)
    with writing(tmp_path / "f", windows, N_VOCAB) as writer:
        writer.write(log_q, np.arange(8))
    data = (tmp_path / "f").read_bytes()
    assert data[:8] == b"_logits_" and struct.unpack("<3i", data[8:20]) == (10, N_VOCAB, 2)
    assert np.frombuffer(data, "<i4", 20, 20).tolist() == list(range(20))
    row = 2 * ((N_VOCAB + 1) // 2) + 4
    assert len(data) == 100 + 8 * 2 * row + 8 * 4
    for i in range(8):
        scale, least = struct.unpack_from("<2f", data, 100 + 2 * row * i)
        codes = np.frombuffer(data, "<u2", N_VOCAB, 108 + 2 * row * i)
        kept = np.maximum(log_q[i], log_q[i].max() - 16)
        assert codes.max() == 65535 and np.abs(scale * codes + least - kept).max() <= 0.51 * scale
    tokens, kept = np.full(8, 3), np.maximum(log_q, log_q.max(axis=1, keepdims=True) - 16)
    log_p, nll = Reference(tmp_path / "f").read(tokens)
    assert np.abs(log_p - kept).max() <= 2e-4 and nll.tolist() == list(range(8))
    (tmp_path / "f").write_bytes(data[:-32])  # llama-perplexity's own ends here
    log_p, nll = Reference(tmp_path / "f").read(tokens)
    assert np.abs(log_p - kept).max() <= 2e-4 and np.abs(nll + kept[:, 3]).max() <= 2e-4


@pytest.mark.parametrize("ended", [KeyboardInterrupt, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_an_unfinished_reference_leaves_no_file(tmp_path: Path, ended: type[BaseException] | OSError) -> None:
    """A reference of the real model has gigabytes: neither Ctrl-C nor a full disk leaves a part of it."""
    windows = Windows(np.zeros((2, 10), np.int32), None)
    with pytest.raises((KeyboardInterrupt, UserError)), writing(tmp_path / "f", windows, N_VOCAB) as writer:
        writer.write(np.zeros((4, N_VOCAB), np.float32), np.zeros(4))
        raise ended
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_a_reference_is_proven_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("read meanwhile")
    (tmp_path / "old").write_text("an older reference")
    wanted = Windows(np.zeros((2, 10), np.int32), None)
    for path, words in (
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "f", "does not exist"),
        (tmp_path / "text", "one of the files it would be made from"),
    ):
        with pytest.raises(UserError, match=words), writing(path, wanted, N_VOCAB, [tmp_path / "text"]):
            raise AssertionError("the work began")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="not enough disk space"), writing(tmp_path / "old", wanted, N_VOCAB):
        raise AssertionError("the work began")
    assert (tmp_path / "old").read_text() == "an older reference"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d[:30], "bytes were expected"),
        (lambda d: b"GGUF" + d[4:], "does not begin with _logits_"),
        (lambda d: d[:8] + struct.pack("<i", -4) + d[12:], "impossible"),
        (lambda d: d[:16] + struct.pack("<i", 1 << 30) + d[20:], "bytes were expected"),
        (lambda d: d[:20] + struct.pack("<i", 99) + d[24:], "outside its vocabulary"),
    ],
)
def test_a_damaged_reference_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
    with writing(tmp_path / "f", Windows(np.zeros((2, 10), np.int32), None), N_VOCAB) as writer:
        writer.write(np.zeros((8, N_VOCAB), np.float32), np.zeros(8))
    (tmp_path / "f").write_bytes(change((tmp_path / "f").read_bytes()))
    with pytest.raises(UserError, match=words):
        Reference(tmp_path / "f").windows(Oracle())  # type: ignore[arg-type]


def test_logits_in_parts_are_the_logits(tiny_gguf: Callable[..., Tiny]) -> None:
    model = glmrun.load(tiny_gguf("F32").path, n_ctx=64, n_threads=2)
    tokens = np.random.default_rng(3).integers(0, model.config.vocab_size, 50).tolist()
    whole = model.logits(tokens)
    for first, rows in ((0, 256), (25, 256), (25, 7), (49, 1)):
        parts = [part.copy() for part in model.logits_after(tokens, first, rows)]
        assert max(map(len, parts)) <= rows
        assert np.abs(np.concatenate(parts) - whole[first:]).max() <= 1e-5 * np.abs(whole).max()
    assert np.array_equal(np.concatenate([part.copy() for part in model.logits_after(tokens, 0)]), whole)


def test_a_model_compared_with_itself_is_itself(tmp_path: Path, tiny_gguf: Callable[..., Tiny]) -> None:
    base, model = str(tmp_path / "base"), str(tiny_gguf("Q8_0").path)
    (tmp_path / "text").write_text(_text(1000))
    written = run("perplexity", model, "-f", str(tmp_path / "text"), "-c", "64", "--chunks", "4", "--kl-divergence-base", base)
    assert written.returncode == 0 and written.stdout.startswith(b"Final estimate: PPL = "), written.stderr
    same = run("ppl", model, "--kl-divergence-base", base, "--kl-divergence", "--json")
    found = json.loads(same.stdout)
    assert found["chunks"] == 4 and found["positions"] == 124 and found["n_ctx"] == 64
    assert f"{found['ppl'][0]:.4f}" == written.stdout.decode().split()[4]
    assert abs(found["kld"][0]) <= 1e-6 and found["same_top_p"] == [1.0, 0.0] and abs(found["ppl_ratio"][0] - 1) <= 1e-4
    other = run("ppl", str(tiny_gguf("Q4_K_M").path), "--kl-divergence-base", base, "--kl-divergence")
    assert b"====== KL divergence statistics ======" in other.stdout and b"Same top p" in other.stdout, other.stderr


def test_wrong_use_of_perplexity_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff")
    assert "not valid UTF-8" in refused("ppl", "-f", str(tmp_path / "text"), code=2)
    assert "No such file" in refused("ppl", "-f", str(tmp_path / "none"), code=3)
    assert "name it with --kl-divergence-base" in refused("ppl", "--kl-divergence", code=2)
    assert "leave -f" in refused("ppl", "--kl-divergence", "--kl-divergence-base", "x", "-f", "y", code=2)
    assert "no such file" in refused("ppl", "--kl-divergence", "--kl-divergence-base", str(tmp_path / "x"), code=3)
    base = str(tmp_path / "nosuch" / "x.kld")
    assert "nosuch does not exist; create it" in refused("ppl", "nano", "--kl-divergence-base", base, code=3)
