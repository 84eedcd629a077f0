"""A tool call that is not closed yet: what of its arguments can be given out already, as pieces of JSON."""

from collections.abc import Mapping

from glmrun.chat.call_body import CallBody
from glmrun.chat.chunk import CallPiece
from glmrun.chat.tool_call import declared_name, is_text, json_of, new_id, typed_arguments


class GrowingCall:
    """Gives out of an open call what no later text can change; add() after each text that the body took.

    That is, once a value has begun that is a text by its declaration and not blank: the function's name, the arguments before that
    value, and the value up to the first tag in it, without the line ends that may be its last. Every other argument waits for the
    next such value, or the end of the call. From a name or a key that is not declared on, behind a key that was there before, and
    behind a value that holds a tag, everything waits for the end, since what was written may have been meant otherwise. A call in
    JSON waits, too.

    The pieces together begin the arguments that the whole call has: read_damaged() keeps to what has begun, and of equal keys the
    first one counts. Only a call that generation cuts off stays without an end.
    """

    def __init__(self, declared: Mapping[str, dict]) -> None:
        self._declared = declared
        self.id = ""  # of the call, once something of it can be given out
        self.name = ""
        self.keys: list[str] = []  # of the arguments whose values have begun
        self._ready: list[str] = []
        self._n_written = 0  # characters of the arguments that are or were ready
        self._line_ends = ""  # that may be the value's last
        self._judged = -1  # the last value of which it is known whether it can begin
        self._can_begin = self._ended = False

    def add(self, body: CallBody, text: str) -> None:
        """Take a text that stands at the end of the body."""
        if self._ended or not body.in_first_text:
            return
        if len(self.keys) <= len(body.pairs):
            text = body.last_text
            if not text.strip() or not self._begins(body):
                return
            if not self.id:
                self.id, self.name = new_id(), declared_name(body.name, self._declared)
            self.keys = [*(key for key, _ in body.pairs), body.key]
            before = json_of(typed_arguments([*body.pairs, (body.key, "")], self._declared[self.name]))[:-2]
            self._ready.append(before[self._n_written :])
            self._n_written, self._line_ends = len(before), ""
        text = self._line_ends + text
        words = text.rstrip("\n")
        self._line_ends = text[len(words) :]
        self._ready.append(json_of(words)[1:-1])
        self._n_written += len(self._ready[-1])

    def take(self) -> CallPiece | None:
        """What is ready and was not taken yet."""
        arguments, self._ready = "".join(self._ready), []
        return CallPiece(self.id, self.name, arguments) if arguments else None

    def _begins(self, body: CallBody) -> bool:
        """Whether the open value can begin."""
        if self._judged < len(body.pairs):
            self._judged = len(body.pairs)
            keys = [*(key for key, _ in body.pairs), body.key]
            schema = self._declared.get(declared_name(body.name, self._declared), {})
            properties = schema.get("properties")
            as_declared = isinstance(properties, dict) and len(set(keys)) == len(keys) and properties.keys() >= set(keys)
            self._ended = not as_declared or body.holds_tags
            self._can_begin = not self._ended and is_text(body.key, schema)
        return self._can_begin
