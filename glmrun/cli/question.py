"""What `glmrun run` is to ask: words of the command line, kept prompts, files, standard input."""

import sys

from glmrun.cli import options
from glmrun.cli.loading import means_a_model, names_a_model
from quant.errors import UserError


def model_and_question(
    words: list[str], named: str | None, prompt: str | None, template: str | None, on_server: bool
) -> tuple[str | None, str | None]:
    """(model, question) from what the command line has; all words are the question if the model is named by a flag.

    Raises UserError for what can't be meant.
    """
    if template is not None:
        from glmrun.store.prompts import filled, values_of

        if prompt is not None:
            raise UserError("the question is given twice, by -p and -T; leave one out", "usage")
        values, words = values_of(words)
        words = [named, *words] if named is not None else words
        if len(words) > 1:
            raise UserError(f"-T takes a model and key=value, not {words[1]!r}", "usage")
        return (words[0] if words else None), filled(template, values)
    if len(words) + (named is not None) > 1 and words and prompt is not None:
        raise UserError("the question is given twice, by -p and as an argument; leave one out", "usage")
    if named is not None:
        return named, " ".join(words) or prompt
    if len(words) == 2:
        first, second = words
        if not on_server and names_a_model(second) and not means_a_model(first):
            raise UserError(f"{first}: no such file or model; do you mean glmrun run {second} {first!r}?", "missing")
        return first, second
    if len(words) > 2:  # without quotes
        model = words[0] if on_server or means_a_model(words[0]) else None
        return model, " ".join(words[model is not None :])
    if not words or (not on_server and names_a_model(words[0])):
        return (words[0] if words else None), prompt
    if prompt is not None:
        return words[0], prompt  # -p is the question, so this can only be a model: let it be missed by name
    return None, words[0]


def with_texts(question: str | None, files: list[str]) -> str:
    """The question, the files under their names, and the text on standard input, when that is not a keyboard.

    A single file without a question is the question; a folder or a pattern means all its files, - standard input.
    """
    from glmrun.repl.attachments import found_by, read_text, with_files

    text = options.text_argument(question or "", "the prompt")
    silent = sys.stdin is None or (sys.stdin.isatty() and "-" not in files)
    piped = "" if silent else options.read_stdin().rstrip("\r\n")
    contents = {path: read_text(path) for name in files if name != "-" for path in found_by(name)}
    if not text and len(contents) == 1:
        text = next(iter(contents.values())).rstrip("\n")
    elif contents:
        text = with_files(text, contents)
    parts = [part for part in (text, piped) if part.strip()]
    if not parts:
        raise UserError('nothing to ask; write glmrun run [MODEL] "question", or pipe text into it', "usage")
    return "\n\n".join(parts)
