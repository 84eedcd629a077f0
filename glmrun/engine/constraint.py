"""Answers that are JSON of a given schema, or calls of functions.

llguidance knows which tokens may come next, and the sampler draws among them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glmrun.chat.tokenizer import Tokenizer
from glmrun.engine.call_grammar import MAX_CALLS, SPACE, call_grammar
from quant.errors import UserError

_FORMATS = {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"}  # that llguidance holds
_GUIDANCE: Any = {"whitespace_pattern": SPACE, "coerce_one_of": True}  # a value of two alternatives of a oneOf is not kept out
_MAX_SCHEMAS = 2 << 20  # characters of schemas in the grammar of calls, each some thirty bytes of memory; the rest is typed only
_VALUES = ("const", "default", "enum", "examples")  # hold no schemas


class Grammar:
    """A tokenizer in llguidance's terms, made once for a model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self._tokenizer = tokenizer
        self._ll = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=tokenizer.n_vocab)

    def constraint(self, schema: dict[str, Any], begins: Callable[[], bool]) -> "Constraint":
        """For one answer of this JSON schema, from when begins() is true: the thinking before it is free.

        Raises UserError (usage) for a schema that cannot be followed.
        """
        from llguidance import LLMatcher

        try:
            text = json.dumps(_without_remarks(schema))
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=_GUIDANCE)
        except (TypeError, ValueError) as why:
            raise UserError(f"the JSON schema is not usable: {_one_line(why)}", "usage") from None
        return Constraint(self._matcher(grammar, "the JSON schema"), self._tokenizer, begins)

    def calls(self, tools: Sequence[Mapping[str, Any]], name: str | None, one: bool, begins: Callable[[], bool]) -> "Constraint":
        """For one answer that calls the declared functions, or the one of this name; one: just one call. Not before begins().

        Raises UserError (usage) if there is no such function or its schema cannot be followed.
        """
        from llguidance import LLMatcher

        room = _MAX_SCHEMAS

        def is_usable(schema: str) -> bool:
            nonlocal room
            room -= len(schema)
            return room >= 0 and not LLMatcher(self._ll, LLMatcher.grammar_from_json_schema(schema), log_level=0).is_error()

        lark = call_grammar(self._tokenizer, tools, name, 1 if one else MAX_CALLS, is_usable)
        matcher = self._matcher(LLMatcher.grammar_from_lark(lark), "the schema of a tool that must be called")
        opening = self._tokenizer.id_of("<tool_call>")
        return Constraint(matcher, self._tokenizer, begins, [] if opening is None else [opening])

    def _matcher(self, grammar: str, what: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._ll, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"{what} is not usable: {_one_line(matcher.get_error())}", "usage")
        return matcher


class Constraint:
    """What one answer may be: allowed() is asked before a token is drawn, accept() is told which it was.

    The answer can end when what is asked for is whole, and not before. not_before: ids that may only come then.
    """

    def __init__(self, matcher: Any, tokenizer: Tokenizer, begins: Callable[[], bool], not_before: Sequence[int] = ()) -> None:
        self._matcher, self._begins = matcher, begins
        self._n_vocab = tokenizer.n_vocab
        self._eog_ids = np.array(sorted(tokenizer.eog_ids), np.int64)  # (n_eog,)
        self._not_before = np.array(not_before, np.int64)  # (n_not_before,)
        self._begun = False

    def allowed(self) -> np.ndarray:
        """bool (n_vocab,) of the tokens that may come next."""
        self._begun = self._begun or self._begins()
        if self._begun:
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)  # uint8 (>= n_vocab / 8,)
            mask = np.unpackbits(bits, count=self._n_vocab, bitorder="little").astype(bool)
        else:
            mask = np.ones(self._n_vocab, bool)
            mask[self._not_before] = False
        mask[self._eog_ids] = self._begun and self._matcher.is_accepting()
        if not mask.any():
            raise UserError("the JSON schema or the tool leaves nothing that may come next; change it", "usage")
        return mask

    def accept(self, token: int) -> None:
        """The token that was drawn."""
        if self._begun and token not in self._eog_ids and not self._matcher.consume_token(token):
            raise UserError(f"the answer cannot follow its grammar any further: {_one_line(self._matcher.get_error())}")


class _Vocabulary:
    """The attributes and the call that llguidance expects of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eog_ids)
        self.bos_token_id = None
        self.tokens = [tokenizer.bytes_of(i) for i in range(tokenizer.n_vocab)]
        special = set(tokenizer.special_texts)
        self.special_token_ids = [i for i in range(tokenizer.n_vocab) if tokenizer.text_of(i) in special]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _without_remarks(schema: Any) -> Any:
    """A schema less the formats that no grammar holds: by the letter of JSON Schema they are remarks, and a path is a text."""
    if isinstance(schema, list):
        return [_without_remarks(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    given = schema.get("format")
    kept = {key: part for key, part in schema.items() if key != "format" or not isinstance(given, str) or given in _FORMATS}
    return {key: part if key in _VALUES else _without_remarks(part) for key, part in kept.items()}


def _one_line(why: object) -> str:
    return " ".join(str(why).split())[:300] or type(why).__name__
