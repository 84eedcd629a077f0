"""An open model: what all conversations share, and the calls that start one."""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, Self

import numpy as np

from glmrun.chat.chunk import Chunk
from glmrun.chat.request import ChatRequest, TooLong, stop_texts
from glmrun.chat.stream import ChatStream
from glmrun.chat.template import ChatFormat
from glmrun.chat.tokenizer import Tokenizer
from glmrun.engine.chat import answer_of
from glmrun.engine.constraint import Grammar
from glmrun.engine.draft_kinds import chain_of, checked_draft
from glmrun.engine.generate import Limits, generate, reporter, texts, until
from glmrun.engine.pace import LEAST_PIECE
from glmrun.engine.passes import Run
from glmrun.engine.runner import Runner
from glmrun.engine.sampling import OPTIONS, Sampler, ThinkBudget, advised, is_whole
from glmrun.engine.sequence import Idle, Shelf
from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.speculative import Drafter
from glmrun.gguf.architecture import DEFAULT_CONTEXT, ModelFile, open_model_file
from glmrun.gguf.dialects import whole_vocabulary
from glmrun.tensors.finite import FiniteCheck
from glmrun.tensors.prefault import Prefault, fit
from glmrun.tensors.split import Converting
from glmrun.tensors.uses import keep_uses
from glmrun.tensors.weights import Weights
from quant.errors import UserError, brief

MAX_LOGPROBS = 20  # likeliest tokens that are reported with one


class Model:
    """A model file, open: config, tokenizer, chat format, weights, and the threads that run it.

    Any number of threads may call chat(), generate() and logits() at once; each call gets the answer that it would get alone.
    (Where a step of a long prompt would last for more than a second it is read in smaller pieces in company. Then fewer tokens
    meet an expert at once, and the last bits may differ. So they may where another call has read the beginning of a prompt.)
    A model ends with close(), or with the block of a `with`.
    """

    def __init__(
        self,
        path: str | os.PathLike | ModelFile,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        kv_type: str | None = None,
        converting: Converting | None = None,
        draft: str = "auto",
        draft_exact: bool = False,
    ) -> None:
        """Open and validate the file; arguments as in glmrun.load(). Raises UserError."""
        self.draft, self._draft_exact = checked_draft(draft), draft_exact
        self.file = path if isinstance(path, ModelFile) else open_model_file(path)
        self.path = path = self.file.path
        self.name = path.name
        self.config = self.file.config
        self._looks_ahead = looks_ahead(self.file, draft)
        self.prefault = Prefault(self.file, self.config, ahead=self._looks_ahead)  # goes on beside what follows
        self.tokenizer = Tokenizer.from_metadata(whole_vocabulary(self.file.metadata, self.config.vocab_size))
        if self.tokenizer.n_vocab != self.config.vocab_size:
            raise UserError(
                f"{path}: its vocabulary has {self.tokenizer.n_vocab:,} tokens, its embedding {self.config.vocab_size:,} rows"
            )
        self.advice = advised(self.file.metadata)
        self.chat_format = ChatFormat(self.file.metadata.get("tokenizer.chat_template"), self.tokenizer)
        self.n_ctx_train = limit = self.config.max_position_embeddings
        self.n_ctx = n_ctx if n_ctx is not None else min(limit, DEFAULT_CONTEXT)
        if not (is_whole(self.n_ctx) and 1 <= self.n_ctx <= limit):
            asked = f"{self.n_ctx:,}" if is_whole(self.n_ctx) else repr(self.n_ctx)
            raise UserError(f"a context of {asked} tokens was asked for; this model takes 1 to {limit:,}", "usage")
        if n_threads is not None and not (is_whole(n_threads) and n_threads >= 1):
            raise UserError(f"{n_threads!r} threads were asked for; at least 1 is needed", "usage")
        self.weights = Weights(self.file, self.config, kv_type, converting, self._looks_ahead)
        self._finite = FiniteCheck(self.file, self.weights.tensors.values(), whole=self.prefault.partial is None)  # beside the rest
        try:
            watched = self.file.watched
            self.runner = Runner(self.weights, self.n_ctx, n_threads, watched=watched, from_disk=self.prefault.way)
            self.runner.workspace.step["populates"] = self.prefault.populates
            self._keeping = weakref.finalize(self, keep_uses, watched, self.runner.workspace.uses)  # also when the program ends
            self._idle = Idle(*self.weights.cache_shape(self.n_ctx))
            self._idle.latest  # noqa: B018  # whether the system gives address space for one is found out here
        except MemoryError:
            raise UserError(
                f"{path}: no memory for a context of {self.n_ctx:,} tokens; ask for a smaller one", "refused", "n_ctx"
            ) from None
        self.n_threads = self.runner.n_threads
        self._cancels = 0
        self._disk: Shelf | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def close(self) -> None:
        """End what runs, as cancel() does, then the threads, and give the caches' memory back. Later calls raise UserError."""
        self._cancels += 1
        self.prefault.stop()
        self._finite.stop()
        self.runner.close()
        if self._disk is not None:
            self._disk.close()
        self._idle.room = 0  # for what is given back behind this
        self._idle.close()
        self._keeping()

    def cancel(self) -> None:
        """End what chat(), generate() and logits() were asked for, soon, even while a prompt is read; safe in a signal handler."""
        self._cancels += 1
        self.runner.cancel()

    def measure(self) -> None:
        """Run a short prompt, so that it is known from the first answer on how long a piece of a prompt lasts."""
        self.logits([0] * min(2 * LEAST_PIECE, self.n_ctx))

    def keep(self, n_bytes: int) -> None:
        """Use so much memory for the rows of conversations that wait for their next turn; at least a context's."""
        n_layers, _, row_bytes, *_ = self.weights.cache_shape(self.n_ctx)
        self._idle.room = max(self.n_ctx, n_bytes // (row_bytes * n_layers))

    def keep_on_disk(self, shelf: Shelf) -> None:
        """Have conversations' rows kept there, too (disk_cache.py): memory gives some up, and a process ends."""
        self._disk = shelf

    @property
    def latest(self) -> Conversation:
        """The sequence of the conversation that was used last, while no call is running."""
        return self._idle.latest

    def checked(self, tokens: Sequence[int], room: int | None = None) -> np.ndarray:
        """Token ids as int64 (n,): proven to be inside the vocabulary and to fit into the room, by default the context.

        Raises UserError, for an empty list, too. Whoever asks is about to run them, so reading ahead makes way for that.
        """
        room = self.n_ctx if room is None else room
        try:
            ids = np.array(list(tokens))  # (n,)
        except (TypeError, ValueError):
            ids = np.array(None)
        if ids.shape == (0,):
            raise UserError("the prompt is empty: there is nothing to continue", "usage")
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or isinstance(tokens, bytes | bytearray):
            raise UserError("tokens are whole numbers, one for each position", "usage")
        if len(ids) > room:
            raise TooLong(len(ids), room)
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise UserError(
                f"token {ids.max() if ids.min() >= 0 else ids.min()} is outside the vocabulary of {self.config.vocab_size:,}",
                "usage",
            )
        self.runner.check()
        self.prefault.experts_on_demand()
        return ids.astype(np.int64)  # int64 (n,)

    # ---- ids ---------------------------------------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits after every token, float32 (len(tokens), n_vocab), in one pass from an empty cache.

        Raises UserError if there are no tokens, more than the context holds, or one outside the vocabulary, and if the file has
        been changed or holds weights that are not finite. Cancelled, it has those of the first tokens only, or of none.
        """
        parts = list(self.logits_after(tokens, 0, self.runner.max_tokens, copy=True))
        none = np.empty((0, self.config.vocab_size), np.float32)  # float32 (0, n_vocab)
        return parts[0] if len(parts) == 1 else np.concatenate([none, *parts])

    def logits_after(self, tokens: Sequence[int], first: int, rows: int = 256, copy: bool = False) -> Iterator[np.ndarray]:
        """Logits after tokens[first:] in parts, float32 (at most rows, n_vocab) each, in one pass from an empty cache.

        All parts share one memory unless copies are asked for, so a window of the full-size model needs 160 MB and not gigabytes.
        Raises as logits() does; ends early when cancelled.
        """
        ids, cancelled = self.checked(tokens), self._cancelled_from_now()
        self.finite()
        out, sequence = np.empty((min(rows, len(ids)), self.config.vocab_size), np.float32), self._idle.take([])
        try:
            while (at := len(sequence.tokens)) < len(ids):
                end = min(at + self.runner.max_tokens, max(at, first) + rows, len(ids))
                wanted = max(0, end - max(at, first))
                if not self.runner.step([Run(sequence, ids[at:end], out[:wanted])], cancelled):
                    return
                if wanted:
                    yield out[:wanted].copy() if copy else out[:wanted]
        finally:
            self._idle.give_back(sequence)

    def finite(self, seconds: float | None = None) -> bool:
        """Wait, at most so long, until all weights have been looked at; whether they have. Raises UserError for a bad one."""
        return self._finite.wait(seconds)

    def _cancelled_from_now(self) -> Any:
        before = self._cancels
        return lambda: self._cancels != before

    def _generate(
        self, ids: np.ndarray, sampler: Sampler | ThinkBudget, max_tokens: int | None, n_top: int | None
    ) -> Iterator[Chunk]:
        """generate.generate() on the sequence that has most of the prompt cached."""
        likely = None if n_top is None else reporter(self.tokenizer, n_top)
        limits = Limits(self.n_ctx, max_tokens, frozenset(self.tokenizer.eog_ids), self._cancelled_from_now(), self.finite, likely)
        chosen = sampler.sampler if isinstance(sampler, ThinkBudget) else sampler
        lent = self._lent(ids, limits.cancelled, exact=chosen.seed is not None)  # a seed repeats its answer
        return generate(self.runner, lent, ids, sampler, limits)

    @contextmanager
    def _lent(self, ids: np.ndarray, cancelled: Callable[[], bool], exact: bool) -> Iterator[tuple[Conversation, Drafter | None]]:
        """The sequence that has most of a prompt cached, and its drafter; it is kept afterwards."""
        known = ids.tolist()[:-1]
        if self._disk is not None:
            self._disk.fetch(known, self._idle)
        sequence = self._idle.take(known)
        try:
            with self.runner.answering():
                yield sequence, self.drafter(sequence, ids, cancelled, exact)
        finally:
            self._idle.give_back(sequence)
            if self._disk is not None:
                self._disk.save_soon(sequence)

    def drafter(
        self, sequence: Conversation, ids: np.ndarray, cancelled: Callable[[], bool] = lambda: False, exact: bool = False
    ) -> Drafter | None:
        """Drafts of the model's kind for an answer to a prompt, int64 (n,), that is read into the sequence; None: without."""
        if self.draft == "off":
            return None
        guess = partial(self.runner.guess, sequence, cancelled=cancelled) if self._looks_ahead else None
        return Drafter(ids.tolist(), self.runner.costs, self.draft, exact or self._draft_exact, guess)

    # ---- text --------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        **sampling: Any,
    ) -> Iterator[Chunk]:
        """Continue a text (no chat format around it, nothing in it becomes a control token) or token ids.

        max_tokens   at most this many new tokens; None: until the model ends or the context is full
        stop         texts, or one, that end the answer and do not appear in it
        logprobs     report the probability of each token and of so many likeliest ones; None: without
        sampling     what ChatRequest.sampling may hold; by default as the file advises
        Raises UserError before the first chunk.
        """
        ids = self.checked(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        ends = stop_texts(stop)
        chunks = self._generate(ids, self.sampler(**sampling), _checked_max_tokens(max_tokens), _checked_logprobs(logprobs))
        chunks = texts(self.tokenizer, chunks)
        return until(chunks, ends) if ends else chunks

    def chat(self, messages: list[dict], **options: Any) -> Iterator[Chunk]:
        """Answer a conversation: OpenAI-shaped messages and tools in, chunks of thinking, answer and tool calls out.

        options   tools, thinking, max_tokens and the other fields of chat.request.ChatRequest;
                  temperature and the rest of sampling as in generate()
        Raises UserError before the first chunk.
        """
        return self.answer(ChatRequest.of(messages, **options))

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        """As chat()."""
        tools, json_schema, ends = request.tools, request.json_schema, stop_texts(request.stop)
        if json_schema is not None and tools:
            raise UserError("an answer of a JSON schema and tools exclude each other; leave one out", "usage")
        ids = self.checked(self.chat_format.encode(request))
        read_as_calls = None if request.tool_choice == "none" else tools
        stream = ChatStream(self.tokenizer, request.thinks, read_as_calls, request.continues)
        chosen = self.sampler(**request.sampling)
        sampler: Sampler | ThinkBudget = chosen
        self._choose_tool(request, chosen, lambda: stream.state == "answer")
        if json_schema is not None:
            chosen.constraint = self._grammar.constraint(json_schema, lambda: stream.state == "answer")
        if request.think_budget is not None:
            close = self.tokenizer.id_of("</think>")
            if close is None:
                raise UserError("this model's vocabulary has no </think>: its thinking cannot be limited", "usage")
            sampler = ThinkBudget(chosen, request.think_budget, close, lambda: stream.state == "thinking")
        chunks = self._generate(ids, sampler, _checked_max_tokens(request.max_tokens), _checked_logprobs(request.logprobs))
        one_call = not request.parallel_tool_calls
        chunks = answer_of(self.chat_format.turns, ids.tolist(), stream, chunks, one_call)
        return until(chunks, ends) if ends else chunks

    def _choose_tool(self, request: ChatRequest, sampler: Sampler, answers: Callable[[], bool]) -> None:
        """Hold the sampler to the request's tool_choice; answers(): the thinking is over."""
        if request.tool_choice == "auto":
            return
        if not isinstance(request.tool_choice, str):
            kinds = "auto, none, required, or the name of a function"
            raise UserError(f"tool_choice is {brief(request.tool_choice)}; expected {kinds}", "usage", "tool_choice")
        if request.tool_choice == "none":
            opening = [i for i in [self.tokenizer.id_of("<tool_call>")] if i is not None and request.tools]
            sampler.forbidden = np.union1d(self.tokenizer.undefined_ids, np.array(opening, np.int64))  # int64 (n_forbidden,)
            return
        name = None if request.tool_choice == "required" else request.tool_choice
        sampler.constraint = self._grammar.calls(request.tools or [], name, not request.parallel_tool_calls, answers)

    def prompt_text(self, request: ChatRequest) -> str:
        """The prompt of the next answer, as text."""
        return self.chat_format.render(request)

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of a conversation as the next prompt will repeat it."""
        return len(self.chat_format.encode(request, add_generation_prompt=False))

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self.tokenizer)

    def sampler(self, **sampling: Any) -> Sampler:
        """A Sampler with the given settings; where one is absent or None, the file's advice or glmrun's default."""
        if unknown := sampling.keys() - OPTIONS:
            raise UserError(f"there is no option {', '.join(sorted(unknown))}; of sampling there are {', '.join(OPTIONS)}", "usage")
        given = {name: value for name, value in sampling.items() if value is not None}
        biases = given.get("logit_bias")
        if isinstance(biases, Mapping) and not all(is_whole(i) and 0 <= i < self.config.vocab_size for i in biases):
            raise UserError(
                f"logit_bias is {brief(biases)}; expected token ids from 0 to {self.config.vocab_size - 1}", "usage", "logit_bias"
            )
        return Sampler(**(self.advice | given), forbidden=self.tokenizer.undefined_ids)


def looks_ahead(file: ModelFile, draft: str) -> bool:
    """Whether the prediction layer runs: where it is asked for, and with auto where the file has one and memory for all of it.

    Raises UserError (usage) if it is asked for and the file has none.
    """
    has = file.config.num_nextn_predict_layers > 0
    if chain_of(draft) and not has:
        raise UserError(
            f"{file.path}: has no next-token-prediction layer, so drafts of kind {draft!r} can't be made; ngram and auto can",
            "usage",
        )
    return has and (chain_of(draft) > 0 or (draft == "auto" and fit(file, file.config, ahead=True).whole))


def _checked_max_tokens(max_tokens: int | None) -> int | None:
    if max_tokens is not None and not (is_whole(max_tokens) and max_tokens >= 1):
        raise UserError(f"max_tokens is {max_tokens!r}; a whole number of at least 1 is expected", "usage")
    return max_tokens


def _checked_logprobs(n_top: int | None) -> int | None:
    if n_top is not None and not (is_whole(n_top) and 0 <= n_top <= MAX_LOGPROBS):
        raise UserError(f"logprobs is {n_top!r}; a whole number from 0 to {MAX_LOGPROBS} is expected", "usage")
    return n_top
