"""Messages of several lines between triple quotes."""

_QUOTES = '"""'


def open_quotes(text: str) -> bool:
    """Whether the text begins with triple quotes that have not been closed at its end."""
    text = text.strip()
    return text.startswith(_QUOTES) and not (len(text) >= 2 * len(_QUOTES) and text.endswith(_QUOTES))


def without_quotes(text: str) -> str:
    """The text between triple quotes; any other text as it is."""
    text = text.strip()
    return text.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n") if text.startswith(_QUOTES) else text
