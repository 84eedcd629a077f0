"""/compact: the model's own summary in the place of the oldest exchanges."""

from typing import Any

from glmrun.repl import sessions
from glmrun.repl.conversation import Conversation
from glmrun.repl.values import whole
from glmrun.terminal.answer import counted
from glmrun.terminal.console import note, say
from quant.errors import UserError

ASK = (
    "Summarize our conversation so far, so that you can go on from your summary alone: what I want, what was decided, names, "
    "numbers, files and code that still matter, and what is open. Write only the summary."
)
_SHARE = 8  # the summary takes at most this part of the context


def compact(conversation: Conversation, rest: str) -> None:
    """Have all but the last exchanges summarized; the summary is shown, and counts when the user says so.

    The conversation as it was stays on disk; the shorter one is a session of its own.
    """
    kept = whole(rest or "1", "/compact takes a number of exchanges that stay as they are", least=0)
    place = len(conversation.messages) if not kept else conversation.last_question(kept)
    if place == 0:
        raise UserError("there is nothing before the exchanges that stay; /compact 0 summarizes all of them")
    ask: dict[str, Any] = {"role": "user", "content": ASK}
    way = "/compact N leaves the last N exchanges as they are and reads less at once"
    answer = conversation.aside(conversation.messages[:place], ask, max(conversation.model.n_ctx // _SHARE, 1), way)
    if answer.finish_reason == "cancelled" or not answer.text.strip():
        note("nothing has changed")
        return
    before = conversation.used()
    if not _is_wanted(conversation, f"  put this in the place of {counted(place, 'message')}? [Y/n] "):
        note("nothing has changed")
        return
    earlier, title = conversation.kept.session, ""
    if earlier is not None:  # else the list would show the request for a summary
        title = sessions.read(earlier.path).title()
    conversation.replace([ask, answer.message(), *conversation.messages[place:]])
    if title:
        conversation.rename(title)
    say(
        f"{before:,} -> {conversation.used():,} of {conversation.model.n_ctx:,} tokens of context"
        + (f"; the whole conversation stays as {earlier.id}" if earlier else "")
    )


def _is_wanted(conversation: Conversation, question: str) -> bool:
    """Ask, if there is somebody who can be asked."""
    keyboard = conversation.surface.keyboard
    if keyboard is None:
        return True
    wanted = keyboard.ask(question) in ("y", "Y", "\r", "\n")
    say("yes" if wanted else "no")
    return wanted
