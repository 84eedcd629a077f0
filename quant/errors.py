"""The one exception that reaches the user as a line of text; anything else is our bug and keeps its traceback."""


class UserError(Exception):
    """What was expected, what was found, what to do, in one line.

    exit_code   1 failed, 2 usage, 3 a model or file is missing (the command line's exit code)
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(UserError):
    """A UserError after which the same command goes on where it stopped: a full disk, a file that cannot be read just now."""


def brief(value: object) -> str:
    """A value that a file holds, for an error line: short and printable, whatever it is."""
    if hasattr(value, "__len__") and not isinstance(value, str) and len(value) > 8:
        return f"a list of {len(value):,} elements"
    text = repr(value[:100] if isinstance(value, str) else value.tolist() if hasattr(value, "tolist") else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
