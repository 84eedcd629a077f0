"""The one exception that reaches the user as a line of text; anything else is our bug and keeps its traceback."""

from typing import Literal, get_args

Kind = Literal["usage", "missing", "refused", "failed", "busy"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class UserError(Exception):
    """What was expected, what was found, what to do, in one line.

    kind      usage: asked for in a way that cannot be; missing: a model or file is not there; refused: asked for correctly, but
              something else must change first; failed: tried and did not work; busy: another process is at it, later it may work
    setting   the argument of a function here that would help, if one would: whoever talks to the user adds what he calls it
    """

    def __init__(self, message: str, kind: Kind = "failed", setting: str | None = None) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not one of {', '.join(KINDS)}")
        super().__init__(message)
        self.kind: Kind = kind
        self.setting = setting


class Interrupted(UserError):
    """A UserError after which the same command continues where it stopped: a full disk, a file that cannot be read just now."""


def brief(value: object) -> str:
    """A value that a file holds, for an error line: short and printable, whatever it is."""
    if hasattr(value, "__len__") and not isinstance(value, str) and len(value) > 8:
        return f"a list of {len(value):,} elements"
    text = repr(value[:100] if isinstance(value, str) else value.tolist() if hasattr(value, "tolist") else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
