"""Messages of several lines between triple quotes, and names of files as a shell would read them."""

import shlex

_QUOTES = '"""'


def open_quotes(text: str) -> bool:
    """Whether the text begins with triple quotes that have not been closed at its end."""
    text = text.strip()
    return text.startswith(_QUOTES) and not (len(text) >= 2 * len(_QUOTES) and text.endswith(_QUOTES))


def without_quotes(text: str) -> str:
    """The text between triple quotes; any other text as it is."""
    text = text.strip()
    return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n") if text.startswith(_QUOTES) else text


def one_name(text: str) -> str:
    """A file's name, without the quotes and backslashes that a terminal adds to a file dragged into it."""
    words = in_shell(text)
    return words[0] if len(words) == 1 else text


def in_shell(text: str) -> list[str]:
    """The words that a shell would read in a text; the text itself where a quote is open."""
    try:
        return shlex.split(text)
    except ValueError:
        return [text]
