"""Drafts: what is guessed, when it pays, and that an answer with drafts is the answer without them."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from support.comparison import text_of, tokens_of
from support.tiny_model import ODD, Tiny
from typer.testing import CliRunner

import glmrun
from glmrun.cli import app
from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence
from glmrun.engine.speculative import LENGTHS, Copies, Drafter, PassCosts
from quant.errors import UserError

PROMPT = np.random.default_rng(12).integers(0, 256, 19).tolist()
TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}},
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


# ---- what is guessed -------------------------------------------------------------------------------------------------


def shared(tokens: list[int], place: int) -> int:
    """How many tokens before a place are those at the end."""
    return next((n for n in range(place) if tokens[place - 1 - n] != tokens[-1 - n]), place)


def test_a_copy_follows_what_the_end_of_the_text_repeats() -> None:
    rng = np.random.default_rng(3)
    for size in (2, 3, 6, 40):
        tokens = rng.integers(0, size, 30).tolist()
        copies = Copies(tokens)
        for token in rng.integers(0, size, 120).tolist():
            copies.add(token)
            tokens.append(token)
            longest = max((shared(tokens, place) for place in range(3, len(tokens))), default=0)
            assert (copies.match > 0) == (longest >= 3) and copies.match <= longest
            if not copies.match:
                continue
            draft = copies.draft(2)
            assert any(
                shared(tokens, place) >= copies.match and (tokens + draft)[place : place + 2] == draft
                for place in range(3, len(tokens))
            )


def test_an_index_made_at_once_is_the_one_that_grew() -> None:
    tokens = np.random.default_rng(5).integers(0, 4, 200).tolist()
    grown = Copies([])
    for n, token in enumerate(tokens, 1):
        grown.add(token)
        whole = Copies(tokens[:n])
        assert (grown._latest, grown._earlier) == (whole._latest, whole._earlier)
        assert bool(grown.match) == bool(whole.match)


def test_of_several_places_the_longest_match_is_copied() -> None:
    assert Copies([7, 1, 2, 3, 50, 9, 1, 2, 3, 60, 7, 1, 2, 3]).draft(1) == [50]
    assert Copies([9, 1, 2, 3, 50, 9, 1, 2, 3, 60, 9, 1, 2, 3]).draft(1) == [60]  # among equals the last one


def test_a_copy_that_reaches_the_end_goes_on_in_its_period() -> None:
    assert Copies([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]).draft(6) == [4, 1, 2, 3, 4, 1]
    assert Copies([5, 5, 5, 5]).draft(3) == [5, 5, 5]
    assert Copies([1, 2, 3, 4, 5]).match == Copies([]).match == Copies([1]).match == 0


# ---- when it pays ----------------------------------------------------------------------------------------------------


def measured(ratio: Callable[[int], float]) -> PassCosts:
    costs = PassCosts()
    costs.add(1, 0.02)
    for _ in range(20):
        for n in LENGTHS:
            costs.add(1 + n, 0.02 * ratio(1 + n))
    return costs


def lengths(tokens: list[int], costs: PassCosts, kind: str = "auto", exact: bool = False) -> list[int]:
    drafter, found = Drafter(tokens[:50], costs, kind, exact), []
    for token in tokens[50:]:
        drafter.add(token)
        found.append(len(drafter.next(1000)))
    return found


def test_drafts_are_made_where_text_repeats_and_passes_are_cheap_enough() -> None:
    text = np.random.default_rng(1).integers(0, 1000, 100).tolist() * 3
    assert lengths(text, PassCosts())[-1] == 16
    assert lengths(text, measured(lambda n: 1 + 0.2 * n))[-1] == 16
    assert lengths(text, measured(lambda n: 1.4 if n == 2 else 3.0 * n))[-1] == 1
    assert set(lengths(text, measured(lambda n: 1.2 * n))) == {0}
    assert max(lengths(text, PassCosts(), exact=True)) == max(lengths(text, PassCosts(), "ngram", exact=True)) == 3


def test_copies_that_prove_wrong_end_the_drafts() -> None:
    rng = np.random.default_rng(2)
    text = [token for _ in range(100) for token in (1, 2, 3, int(rng.integers(10, 10000)))]  # a match every time, never right
    wrong = [text[n] for n in range(3, len(text), 4)]
    found = lengths(text, PassCosts())[2::4]
    assert len(set(wrong)) > 90 and set(found[-50:]) == {0}
    assert set(lengths(text, PassCosts(), "ngram")) == {0, 16}


def test_random_text_is_not_drafted() -> None:
    assert set(lengths(np.random.default_rng(4).integers(0, 150000, 3000).tolist(), PassCosts())) == {0}


def test_no_draft_is_longer_than_its_room() -> None:
    drafter = Drafter([1, 2, 3, 4] * 20, measured(lambda n: 1.0), "auto", exact=False)
    for token in [1, 2, 3, 4] * 20:
        drafter.add(token)
    assert [len(drafter.next(room)) for room in (-1, 0, 1, 2, 6, 7, 16, 99)] == [0, 0, 1, 2, 3, 7, 16, 16]
    assert len(Drafter([5] * 9, PassCosts(), "ngram", exact=False).next(5)) == 5
    assert Drafter([5] * 9, PassCosts(), "ngram", exact=False).next(-1) == []


def test_a_slow_pass_counts_for_nothing_and_slow_ones_are_forgotten() -> None:
    costs = measured(lambda n: 2.0)
    for _ in range(2):
        costs.add(17, 100.0)
    assert costs.ratio(17) == pytest.approx(2.0)
    costs.add(17, 100.0)
    assert costs.ratio(17) == pytest.approx(5000.0)
    for _ in range(200):
        costs.add(1, 0.02)
    assert costs.ratio(17) == PassCosts().ratio(17)
    costs.add(1, 100.0)
    for _ in range(3):
        costs.add(17, 0.02 * 4)
    assert costs.ratio(17) == pytest.approx(4.0)


# ---- answers ---------------------------------------------------------------------------------------------------------


class Oracle:
    """A drafter that knows the answer; every `wrong`-th token of it is another one."""

    truth: ClassVar[list[int]] = []
    length, wrong, guessed = 16, 5, False

    def __init__(self, tokens: list[int], costs: PassCosts, kind: str, exact: bool, guess: Any) -> None:
        self._n = len(tokens)

    def add(self, token: int) -> None:
        assert token == self.truth[self._n]
        self._n += 1

    def next(self, room: int) -> list[int]:
        ahead = range(self._n, min(self._n + min(room, self.length), len(self.truth)))
        return [(self.truth[i] + (i % self.wrong == 0)) % 256 for i in ahead]


@pytest.fixture
def drafting(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """check(ask, choice, length): ask(model) gives the same chunks with the oracle's drafts as without any."""
    opened: list[Model] = []

    def check(ask: Callable[[Model], list[Any]], choice: str = "F32", length: int = 16) -> None:
        plain, drafts = (glmrun.load(tiny_gguf(choice).path, n_ctx=512, n_threads=2, draft=kind) for kind in ("off", "ngram"))
        opened.extend((plain, drafts))
        seen: list[list[int]] = []
        encode = Model.checked

        def checked(model: Model, tokens: Any, room: int | None = None) -> np.ndarray:
            ids = encode(model, tokens, room)
            seen.append(ids.tolist())
            return ids

        monkeypatch.setattr(Model, "checked", checked)
        expected = ask(plain)
        Oracle.truth, Oracle.length = seen[0] + tokens_of(expected), length
        monkeypatch.setattr("glmrun.engine.model.Drafter", Oracle)
        chunks = ask(drafts)
        assert tokens_of(chunks) == tokens_of(expected)
        assert text_of(chunks) == text_of(expected)
        assert [c.logprobs for c in chunks if c.token is not None] == [c.logprobs for c in expected if c.token is not None]
        assert [c.reasoning for c in chunks if c.token is not None] == [c.reasoning for c in expected if c.token is not None]
        assert chunks[-1].finish_reason == expected[-1].finish_reason and chunks[-1].token_ids == expected[-1].token_ids
        stats, before = chunks[-1].stats, expected[-1].stats
        assert stats.n_generated == before.n_generated and before.n_drafted == before.n_accepted == 0
        assert stats.n_passes + stats.n_accepted >= before.n_passes
        assert 0 < stats.n_accepted < stats.n_drafted and stats.n_passes < before.n_passes
        cached, written = drafts.latest.tokens, Oracle.truth
        assert cached == written[: len(cached)] and len(cached) >= len(plain.latest.tokens)

    yield check
    for model in opened:
        model.close()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "logprobs": 2},
        {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0, "seed": 3},
        {"temperature": 0.8, "repeat_penalty": 1.3, "repeat_last_n": 20, "seed": 4},
    ],
)
@pytest.mark.parametrize(("choice", "length"), [("F32", 3), ("Q4_K_M", 3), ("everything", 3)])
def test_an_answer_with_drafts_is_the_answer_without(drafting, choice: str, length: int, options: dict[str, Any]) -> None:
    drafting(lambda model: list(model.generate(PROMPT, max_tokens=60, **options)), choice, length)


def test_an_answer_with_long_drafts_is_the_answer_without(drafting) -> None:
    drafting(lambda model: list(model.generate(PROMPT, max_tokens=60, temperature=1.5, top_p=1.0, min_p=0.0, seed=6)), "F32", 16)


MESSAGES = [{"role": "user", "content": "hello there"}]
SAMPLING = {"temperature": 1.2, "top_p": 1.0, "min_p": 0.0, "seed": 5}


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 70, "think_budget": 20},
        {"max_tokens": 70, "tools": TOOLS},
        {"max_tokens": 200, "json_schema": PERSON, "thinking": False},
        {"max_tokens": 70, "json_schema": PERSON, "think_budget": 11},
    ],
    ids=["budget", "tools", "schema", "schema behind thinking"],
)
def test_a_chat_with_drafts_is_the_chat_without(drafting, options: dict[str, Any]) -> None:
    drafting(lambda model: list(model.chat(MESSAGES, **SAMPLING, **options)))


def test_a_stop_text_ends_an_answer_inside_a_draft(drafting, tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("F32").path, n_ctx=512, draft="off") as model:
        text = text_of(model.generate(PROMPT, max_tokens=60, **SAMPLING))
    stop = next(text[i : i + 3] for i in range(20, len(text)) if "�" not in text[i : i + 3])
    drafting(lambda model: list(model.generate(PROMPT, max_tokens=60, stop=(stop,), **SAMPLING)))


def test_the_context_ends_an_answer_inside_a_draft(drafting) -> None:
    drafting(lambda model: list(model.generate((PROMPT * 30)[:470], temperature=0)))


def test_cancel_inside_a_draft_leaves_what_was_drawn(drafting) -> None:
    def ask(model: Model) -> list[Any]:
        chunks = []
        for chunk in model.generate(PROMPT, max_tokens=60, **SAMPLING):
            chunks.append(chunk)
            if len(tokens_of(chunks)) == 23:
                model.cancel()
        return chunks

    drafting(ask)


def test_the_next_answer_continues_from_the_cache(drafting) -> None:
    def ask(model: Model) -> list[Any]:
        first = list(model.generate(PROMPT, max_tokens=30, **SAMPLING))
        for chunk in model.generate(PROMPT, max_tokens=30, **SAMPLING):
            if chunk.stats.n_generated == 12:
                break  # in the middle of a draft
        return first

    drafting(ask)


def test_conversations_with_drafts_at_once_give_what_each_gives_alone(tiny_gguf: Callable[..., Tiny]) -> None:
    prompts = [[*PROMPT[n:], *([40 + n, 41, 42, 43] * 6)] for n in range(4)]
    with glmrun.load(tiny_gguf("F32").path, n_ctx=512, n_threads=2, draft="off") as model:
        expected = [tokens_of(model.generate(prompt, max_tokens=40, temperature=0)) for prompt in prompts]
    with glmrun.load(tiny_gguf("F32").path, n_ctx=512, n_threads=2, draft="ngram") as model:
        got: dict[int, list[int]] = {}

        def ask(n: int) -> None:
            got[n] = tokens_of(model.generate(prompts[n], max_tokens=40, temperature=0))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[n] for n in range(4)] == expected


@pytest.mark.parametrize("choice", ["F32", "Q8_0", "Q4_K_M", "everything"])
def test_an_exact_pass_computes_what_single_tokens_compute(tiny_gguf: Callable[..., Tiny], choice: str) -> None:
    with glmrun.load(tiny_gguf(choice).path, n_ctx=512, n_threads=2) as model:
        c, shape = model.config, model.weights.cache_shape(512)
        tokens = np.random.default_rng(6).integers(0, 900, 330)  # int64 (330,)

        def behind(lengths: list[int], exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
            sequence, rows = Sequence(*shape), []
            model.runner.step([Run(sequence, tokens[:250], sequence.logits)])
            for n in lengths:
                at = len(sequence.tokens)
                logits = np.empty((n, c.vocab_size), np.float32)  # float32 (n, n_vocab)
                model.runner.step([Run(sequence, tokens[at : at + n], logits, exact)])
                rows.append(logits)
            return np.concatenate(rows), sequence.rows[:, : len(sequence.tokens)]

        one, one_rows = behind([1] * 36)
        few, few_rows = behind([2, 3, 4] * 4, exact=True)
        np.testing.assert_array_equal(few, one)
        np.testing.assert_array_equal(few_rows, one_rows)


def test_an_exact_pass_in_company_changes_no_bit(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("Q4_K_M").path, n_ctx=512, n_threads=2) as model:
        c, shape = model.config, model.weights.cache_shape(512)
        tokens = np.random.default_rng(6).integers(0, 900, 90)  # int64 (90,)

        def run(n_tokens: int, n_logits: int, exact: bool) -> Run:
            sequence = Sequence(*shape)
            model.runner.step([Run(sequence, tokens[:70], sequence.logits)])
            return Run(sequence, tokens[70 : 70 + n_tokens], np.empty((n_logits, c.vocab_size), np.float32), exact)

        wanted = [(20, 1, False), (3, 3, True), (2, 1, False), (4, 4, True), (1, 0, False)]
        together, alone = [run(*w) for w in wanted], [run(*w) for w in wanted]
        assert model.runner.step(together) and not model.runner.alone
        for run_alone, run_together in zip(alone, together, strict=True):
            assert model.runner.step([run_alone]) and model.runner.alone
            np.testing.assert_array_equal(run_together.logits, run_alone.logits)
            n = len(run_alone.sequence.tokens)
            assert run_together.sequence.tokens == run_alone.sequence.tokens
            np.testing.assert_array_equal(run_together.sequence.rows[:, :n], run_alone.sequence.rows[:, :n])


def test_a_text_that_repeats_itself_takes_fewer_passes(tiny_gguf: Callable[..., Tiny]) -> None:
    stats = {}
    for draft in ("off", "ngram"):
        with glmrun.load(tiny_gguf("F32").path, n_ctx=512, n_threads=2, draft=draft) as model:
            chunks = list(model.generate(PROMPT, max_tokens=300, temperature=0))  # random weights come into a loop
            stats[draft] = chunks[-1].stats, tokens_of(chunks)
    (off, expected), (ngram, tokens) = stats["off"], stats["ngram"]
    assert tokens == expected and off.n_generated > 100
    assert ngram.n_passes < off.n_passes and ngram.n_passes + ngram.n_accepted >= off.n_passes


def test_a_seed_takes_exact_drafts_only(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Noted(Drafter):
        def __init__(self, tokens: Any, costs: PassCosts, kind: str, exact: bool, guess: Any) -> None:
            asked.append(exact)
            super().__init__(tokens, costs, kind, exact, guess)

    monkeypatch.setattr("glmrun.engine.model.Drafter", Noted)
    with glmrun.load(tiny_gguf("F32").path, n_ctx=64) as model:
        for options in ({}, {"seed": 1}, {"temperature": 0}):
            list(model.generate(PROMPT, max_tokens=2, **options))
        list(model.chat(MESSAGES, think_budget=1, max_tokens=2, seed=2))
    with glmrun.load(tiny_gguf("F32").path, n_ctx=64, draft_exact=True) as model:
        list(model.generate(PROMPT, max_tokens=2))
    assert asked == [False, True, False, True, True]


def test_an_unknown_kind_of_draft_is_refused(tiny_gguf: Callable[..., Tiny]) -> None:
    with pytest.raises(UserError, match=r"'mtp9'.*off, ngram, mtp, auto") as caught:
        glmrun.load(tiny_gguf("F32", replace(ODD, num_hidden_layers=2)).path, draft="mtp9")
    assert caught.value.kind == "usage"


def test_the_command_line_sets_the_drafts(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    load = glmrun.load

    def noted(*arguments: Any, **options: Any) -> Model:
        asked.append((options["draft"], options["draft_exact"]))
        return load(*arguments, **options)

    monkeypatch.setattr(glmrun, "load", noted)
    path = str(tiny_gguf("F32").path)
    common = ["run", path, "aaaaaaaaaaaaaaaaaaaaaaaaaa", "-n", "40", "--no-think", "--json", "--temp", "0"]
    drafted = []
    for flags in (["--draft", "off"], ["--draft", "ngram"], [], ["--draft-exact"]):
        done = CliRunner().invoke(app, [*common, *flags])
        assert done.exit_code == 0, done.output
        drafted.append(json.loads(done.stdout)["timings"]["draft_n"])
    assert asked == [("off", False), ("ngram", False), ("auto", False), ("auto", True)]
    assert drafted[0] == 0
    wrong = CliRunner().invoke(app, ["run", path, "x", "--draft", "mtp9"])
    assert wrong.exit_code == 2 and "off, ngram, mtp, auto" in wrong.output and len(asked) == 4
