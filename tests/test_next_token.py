"""The next-token-prediction layer: its numbers are the slow twin's, and an answer with its drafts is the answer without."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.comparison import nmse
from support.foreign_file import Parts, random_blocks
from support.tiny_model import ODD, ODDER, Tiny

import glmrun
from glmrun.engine.model import Model, looks_ahead
from glmrun.engine.next_token import WAITING, fill, read
from glmrun.engine.passes import Run
from glmrun.engine.saved_cache import SavedCache
from glmrun.engine.sequence import Sequence
from glmrun.engine.workspace import Part
from glmrun.gguf.architecture import open_model_file
from glmrun.gguf.source import GGUFSource
from glmrun.tensors.prefault import fit
from glmrun.tensors.split import DRAFT_HEAD
from quant.convert import convert, plan
from quant.errors import UserError

AHEAD = replace(ODD, num_nextn_predict_layers=1)
TOKENS = np.random.default_rng(8).integers(0, 900, 80)  # int64 (80,)


def has_read(model: Model, *lengths: int) -> Sequence:
    """A sequence with the first tokens of TOKENS, in steps of so many; those of four tokens and fewer want all their logits."""
    sequence = Sequence(*model.weights.cache_shape(model.n_ctx))
    for n in lengths:
        at, logits = len(sequence.tokens), np.empty((n if n < 5 else 1, model.config.vocab_size), np.float32)
        assert model.runner.step([Run(sequence, TOKENS[at : at + n], logits, exact=n < 5, ahead=True)])
    return sequence


def rows_ahead(model: Model, sequence: Sequence) -> np.ndarray:
    """The prediction layer's rows that are there."""
    return sequence.rows[-1, : sequence.n_ahead]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "config", "limit"),
    [("F32", AHEAD, 1e-10), ("F32", ODDER, 1e-10), ("Q8_0", AHEAD, 2e-4), ("Q4_K_M", AHEAD, 2e-3), ("everything", ODDER, 2e-3)],
)
def test_the_layer_gives_the_slow_twins_logits_and_states(
    tiny_gguf: Callable[..., Tiny], choice: str, config: Any, limit: float
) -> None:
    """From states that are the twin's own, so that only the layer is compared; then one guess behind the other."""
    tiny = tiny_gguf(choice, config)
    twin = tiny.naive()
    states = twin.states(TOKENS[:30])
    logits, own = twin.ahead(states[:29], TOKENS[1:30])
    with glmrun.load(tiny.path, n_ctx=64, n_threads=2, draft="mtp") as model:
        sequence, passes = Sequence(*model.weights.cache_shape(model.n_ctx)), model.runner._passes
        for at, n, n_logits in ((0, 20, 20), (20, 5, 1), (25, 1, 1), (26, 3, 3)):
            part = Part(sequence.cache, at, n, n_logits)
            found = read(passes, part, TOKENS[at + 1 : at + 1 + n].tolist(), states[at : at + n].astype(np.float32))
            assert found is not None
            first = at + n - n_logits
            assert nmse(found[0], logits[first : at + n]) < limit
            assert nmse(found[1], own[first : at + n]) < limit


@pytest.mark.parametrize("choice", ["F32", "Q4_K_M"])
def test_states_are_what_the_output_matrix_reads(tiny_gguf: Callable[..., Tiny], choice: str) -> None:
    tiny = tiny_gguf(choice, AHEAD)
    expected = tiny.naive().states(TOKENS[:32])
    with glmrun.load(tiny.path, n_ctx=64, n_threads=2, draft="mtp") as model:
        sequence = has_read(model, 29, 1, 2)
        assert (sequence.n_ahead, len(sequence.tokens)) == (28, 32) and sequence.states is not None
        assert nmse(sequence.states, expected[28:]) < (1e-10 if choice == "F32" else 2e-3)
        expected_guess = tiny.naive().ahead(expected, [*TOKENS[1:32], 7])[0][-1]
        if choice == "F32":
            assert model.runner.guess(sequence, 7, 1) == [int(expected_guess.argmax())]


def test_a_chain_feeds_the_layers_own_state_back(tiny_gguf: Callable[..., Tiny]) -> None:
    tiny = tiny_gguf("F32", AHEAD)
    twin, tokens = tiny.naive(), TOKENS[:20].tolist()
    states, following, expected = twin.states(tokens), [*tokens[1:], 7], []
    for _ in range(3):
        logits, own = twin.ahead(states, following)
        expected.append(int(logits[-1].argmax()))
        states, following = np.concatenate([states, own[-1:]]), [*following, expected[-1]]
    with glmrun.load(tiny.path, n_ctx=64, n_threads=2, draft="mtp:3") as model:
        sequence = has_read(model, 20)
        assert model.runner.guess(sequence, 7, 3) == expected
        assert (sequence.n_ahead, len(sequence.tokens)) == (20, 20)
        assert model.runner.guess(sequence, 7, 3) == []  # the state was read, and a new one comes with the next step only


def test_rows_are_the_same_in_whatever_pieces_the_text_comes(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("F32", AHEAD).path, n_ctx=128, n_threads=2, draft="mtp") as model:
        whole = has_read(model, 70)
        for lengths in ([30, 40], [10] + [1] * 60, [5, 4, 1, 60], [69, 1]):
            pieces = has_read(model, *lengths)
            fill(model.runner._passes, pieces, at_once=True)
            assert pieces.n_ahead == whole.n_ahead == 69
            np.testing.assert_allclose(
                rows_ahead(model, pieces).view(np.float32), rows_ahead(model, whole).view(np.float32), rtol=1e-3, atol=1e-4
            )


def test_states_of_written_tokens_wait_until_there_are_many(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("F32", AHEAD).path, n_ctx=128, n_threads=2, draft="mtp") as model:
        sequence = has_read(model, 8)
        assert sequence.states is not None and (sequence.n_ahead, len(sequence.states)) == (7, 1)
        sequence = has_read(model, 8, *[1] * (WAITING - 1))
        assert sequence.states is not None and (sequence.n_ahead, len(sequence.states)) == (7, WAITING)
        sequence = has_read(model, 8, *[1] * WAITING)
        assert sequence.states is not None and (sequence.n_ahead, len(sequence.states)) == (7 + WAITING, 1)


@pytest.mark.parametrize("choice", ["F32", "Q4_K_M", "everything"])
def test_the_trunk_computes_the_same_bits_with_the_layer(tiny_gguf: Callable[..., Tiny], choice: str) -> None:
    """A prompt in two pieces, a token, three tokens, and several sequences in a step."""
    path = tiny_gguf(choice, AHEAD).path
    logits, rows = [], []
    for draft in ("off", "mtp"):
        with glmrun.load(path, n_ctx=128, n_threads=2, draft=draft) as model:
            n = model.config.vocab_size
            a, b, c = (Sequence(*model.weights.cache_shape(model.n_ctx)) for _ in range(3))
            own = [np.empty((k, n), np.float32) for k in (1, 1, 3, 1, 2)]  # float32 (k, n_vocab) each
            assert model.runner.step([Run(a, TOKENS[:40], own[0][:0], ahead=True)])
            assert model.runner.step([Run(a, TOKENS[40:50], own[0], ahead=True), Run(b, TOKENS[:20], own[1], ahead=True)])
            runs = [
                Run(a, TOKENS[50:53], own[2], True, True),
                Run(b, TOKENS[20:29], own[3], ahead=True),
                Run(c, TOKENS[:7], own[4]),
            ]
            assert model.runner.step(runs)
            logits.append(own)
            rows.append([s.rows[: model.config.num_hidden_layers, : len(s.tokens)].copy() for s in (a, b, c)])
            assert (a.states is None) == (draft == "off") and len(a.rows) == model.config.num_hidden_layers + (draft == "mtp")
    for off, mtp in zip(logits[0] + rows[0], logits[1] + rows[1], strict=True):
        np.testing.assert_array_equal(off, mtp)


# ---- sequences -------------------------------------------------------------------------------------------------------


def test_rows_and_states_follow_what_becomes_of_a_sequence(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("F32", AHEAD).path, n_ctx=128, n_threads=2, draft="mtp") as model:
        sequence = has_read(model, 20, 3)
        expected = model.runner.guess(has_read(model, 20, 3), 7, 2)
        copy = Sequence(*model.weights.cache_shape(model.n_ctx))
        copy.share(sequence, 23)
        assert copy.n_whole == 23 and model.runner.guess(copy, 7, 2) == expected
        sequence.truncate(21)  # two of the three were drafts
        assert sequence.n_whole == 21 and sequence.n_ahead == 19
        assert model.runner.guess(sequence, int(TOKENS[21]), 1) == model.runner.guess(has_read(model, 20, 1), int(TOKENS[21]), 1)
        short = Sequence(*model.weights.cache_shape(model.n_ctx))
        short.share(has_read(model, 20, 3), 12)
        assert model.runner.guess(short, 7, 2) == []  # the state of position 11 is gone ...
        assert (short.n_whole, short.n_ahead) == (11, 11)
        short.give_up_rest()
        assert short.tokens == TOKENS[:11].tolist() and short.n_whole == 11
        logits = np.empty((1, model.config.vocab_size), np.float32)
        assert model.runner.step([Run(short, TOKENS[11:23], logits, ahead=True)])  # ... until its token is run again
        assert model.runner.guess(short, 7, 2) == expected
        assert model.runner.step([Run(short, TOKENS[23:24], logits)])
        assert short.n_whole == 23  # a step that did not look ahead left no state


def test_sequences_that_wait_keep_what_drafts_need(tiny_gguf: Callable[..., Tiny]) -> None:
    """A second turn that continues the first one, and one that shares its beginning only, draft as from an empty cache."""
    prompt, more = TOKENS[:30].tolist(), [*TOKENS[:20].tolist(), *TOKENS[50:62].tolist()]
    found = []
    for warm in (False, True):
        with glmrun.load(tiny_gguf("F32", AHEAD).path, n_ctx=128, n_threads=2, draft="mtp") as model:
            if warm:
                list(model.generate(prompt, max_tokens=3, temperature=0))
            *_, last = model.generate(more, max_tokens=1, temperature=0)
            sequence = model.latest
            fill(model.runner._passes, sequence, at_once=True)
            found.append((last.stats.n_cached, model.runner.guess(sequence, 7, 3), rows_ahead(model, sequence).copy()))
    (cold, expected, rows), (cached, got, others) = found
    assert (cold, cached) == (0, 19) and got == expected
    np.testing.assert_allclose(others.view(np.float32), rows.view(np.float32), rtol=1e-3, atol=1e-4)


def test_a_saved_cache_keeps_the_layers_rows(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    path = tiny_gguf("F32", AHEAD).path
    with glmrun.load(path, n_ctx=128, n_threads=2, draft="mtp") as model:
        saved = SavedCache(tmp_path / "cache", model)
        list(model.generate(TOKENS[:40].tolist(), max_tokens=6, temperature=0))
        saved.save()
        list(model.generate([*TOKENS[:30].tolist(), *TOKENS[60:70].tolist()], max_tokens=6, temperature=0))  # the turn again
        saved.save()
        tokens = model.latest.tokens[:]
        list(model.generate([*tokens, *TOKENS[40:60].tolist()], max_tokens=6, temperature=0))
        saved.save()
        n_whole, rows = model.latest.n_ahead, model.latest.rows.copy()
        tokens = model.latest.tokens[:]
    with glmrun.load(path, n_ctx=128, n_threads=2, draft="mtp") as model:
        n = SavedCache(tmp_path / "cache", model).load()
        assert 60 < n <= len(tokens) and model.latest.tokens == tokens[:n] and model.latest.n_ahead == n - 1 <= n_whole
        np.testing.assert_array_equal(model.latest.rows[:, : n - 1], rows[:, : n - 1])
        *_, last = model.generate([*tokens[:n], 7], max_tokens=4, temperature=0)
        assert last.stats.n_cached == n - 1 and last.stats.n_guessed > 0
    with glmrun.load(path, n_ctx=128, n_threads=2, draft="off") as model:
        other = SavedCache(tmp_path / "cache", model)
        assert other.load() == 0 and other.ignored is not None


# ---- files -----------------------------------------------------------------------------------------------------------


def guesses(path: Path) -> list[int]:
    with glmrun.load(path, n_ctx=64, n_threads=2, draft="mtp:3") as model:
        return model.runner.guess(has_read(model, 20), 7, 3)


def test_a_file_without_the_layer_refuses_in_one_line(tiny_gguf: Callable[..., Tiny]) -> None:
    path = tiny_gguf("F32", ODD).path
    for draft in ("mtp", "mtp:3"):
        with pytest.raises(UserError, match="no next-token-prediction layer") as caught:
            glmrun.load(path, draft=draft)
        assert caught.value.kind == "usage" and "\n" not in str(caught.value)
    with glmrun.load(path, n_ctx=64) as model:
        assert model.weights.next_token is None and model.latest.states is None


def test_what_a_file_leaves_out_or_holds_twice_is_the_trunks(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    parts, block = Parts.read(tiny_gguf("Q8_0", AHEAD).path), f"blk.{AHEAD.num_hidden_layers}.nextn."
    pairs = {"embed_tokens": "token_embd", "shared_head_head": "output", "shared_head_norm": "output_norm"}
    for own, trunk in pairs.items():
        blocks = parts.blocks[f"{trunk}.weight"]
        parts.blocks[f"{block}{own}.weight"] = blocks.copy()
    twice = parts.write(tmp_path / "twice.gguf")
    left_out = [name for name in parts.blocks if not name.startswith(tuple(block + own for own in pairs))]
    without = parts.write(tmp_path / "without.gguf", left_out)
    assert guesses(twice) == guesses(without)
    for path in (twice, without):
        with glmrun.load(path, n_ctx=64, draft="mtp") as model:
            layer = model.weights.next_token
            assert layer is not None and layer.embed.name == "token_embd.weight"
            assert int(layer.layer.model["output"]["address"]) == int(model.weights.model["output"]["address"])
            assert f"{block}shared_head_head.weight" not in model.weights.tensors
    again = tmp_path / "again.gguf"
    for _ in convert(plan(GGUFSource.open(without), "Q8_0"), again):
        pass
    assert guesses(again) == guesses(twice)


def test_fused_and_foreign_tensors_of_the_layer_are_read(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    """eh_proj and the head in a format that convert does not write; keys and values in one matrix, gate and up, too."""
    tiny, n = tiny_gguf("F32", AHEAD), AHEAD.num_hidden_layers
    parts = Parts.read(tiny.path)
    parts.fuse_keys("F32")
    parts.fuse_experts()
    assert guesses(parts.write(tmp_path / "fused.gguf")) == guesses(tiny.path)
    for name in ("eh_proj", "shared_head_head"):
        tensor = f"blk.{n}.nextn.{name}.weight"
        blocks = random_blocks("Q4_1", *parts.shapes[tensor], 0.05, seed=len(name))
        parts.blocks[tensor], parts.formats[tensor] = blocks, "Q4_1"
    foreign = parts.write(tmp_path / "foreign.gguf")
    for name in ("eh_proj", "shared_head_head"):
        parts.put(f"blk.{n}.nextn.{name}.weight", parts.take(f"blk.{n}.nextn.{name}.weight"), "F32")
    assert guesses(foreign) == guesses(parts.write(tmp_path / "same.gguf"))


def test_halves_that_are_not_whole_blocks_are_copied(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    config = replace(AHEAD, hidden_size=384)
    tiny = tiny_gguf("Q8_0", config)
    parts, name = Parts.read(tiny.path), f"blk.{config.num_hidden_layers}.nextn.eh_proj.weight"
    parts.put(name, parts.take(name), "Q4_K")
    path = parts.write(tmp_path / "halves.gguf")
    parts.put(name, parts.take(name), "F32")
    assert guesses(path) == guesses(parts.write(tmp_path / "same.gguf"))


def test_the_draft_head_is_the_first_rows(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    path, n = tiny_gguf("Q4_K_M", AHEAD).path, 300
    assert DRAFT_HEAD == 32768
    monkeypatch.setattr("glmrun.tensors.split.DRAFT_HEAD", n)
    monkeypatch.setattr("glmrun.tensors.weights.DRAFT_HEAD", n)
    with glmrun.load(path, n_ctx=128, n_threads=2, draft="mtp") as model:
        layer = model.weights.next_token
        assert layer is not None and layer.layer.model["output"]["rows"] == n
        drafted = [model.runner.guess(has_read(model, k), 7, 3) for k in range(5, 25)]
        assert max(map(max, drafted)) < n


def test_without_a_source_that_uses_it_nothing_of_the_layer_is_loaded(tiny_gguf: Callable[..., Tiny]) -> None:
    path, block = tiny_gguf("Q8_0", AHEAD).path, f"blk.{AHEAD.num_hidden_layers}."
    for draft in ("off", "ngram"):
        with glmrun.load(path, n_ctx=64, draft=draft) as model:
            assert not any(name.startswith(block) for name in model.weights.tensors)
            assert len(model.latest.rows) == AHEAD.num_hidden_layers and model.latest.states is None
    with glmrun.load(path, n_ctx=64) as model:
        assert len(model.latest.rows) == AHEAD.num_hidden_layers + 1


def test_auto_leaves_the_layer_alone_where_memory_is_short(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_model_file(tiny_gguf("Q8_0", AHEAD).path)
    needed, without = (fit(file, file.config, 0, ahead=ahead).needed for ahead in (True, False))
    assert needed - without == sum(
        t.n_bytes for name, t in file.tensors.items() if name.startswith(f"blk.{ODD.num_hidden_layers}.")
    )
    for available, used in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("glmrun.tensors.prefault.available_memory", lambda available=available: available)
        assert looks_ahead(file, "auto") == used
        assert looks_ahead(file, "mtp") and not looks_ahead(file, "off") and not looks_ahead(file, "ngram")
