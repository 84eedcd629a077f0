"""The slash commands that write conversations down and fetch them back: save, load, sessions, export, copy."""

import base64
import os
import re
import sys
from datetime import datetime
from pathlib import Path

from glmrun.repl import export, sessions
from glmrun.repl.conversation import Conversation
from glmrun.repl.kept import model_path
from glmrun.repl.quotes import one_name
from glmrun.terminal.answer import counted
from glmrun.terminal.console import note, say
from glmrun.terminal.sanitize import one_line, visible
from glmrun.terminal.tables import bytes_text, columns
from glmrun.terminal.tail import window
from quant.errors import UserError

_COPY_LIMIT = 74_000  # bytes: what terminals take for their clipboard at once


def save(conversation: Conversation, rest: str) -> None:
    if not rest:
        session = conversation.kept.session
        where = f"the conversation itself is kept as {session.id}" if session else "nothing is saved yet"
        raise UserError(f"/save FILE writes a copy that /load reads; {where}")
    path, replace = _file(rest)
    sessions.write_copy(path, model_path(conversation.model), conversation.system, conversation.messages, replace)
    say(f"{path}: {counted(len(conversation.messages), 'message')}; /load {path} reads it")


def _file(rest: str) -> tuple[Path, bool]:
    """(a file, whether it may take another one's place) of what follows a command."""
    name = re.sub(r"^--force\s+|\s+--force$", "", rest)
    return Path(os.path.expanduser(one_name(name))), name != rest


def load(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise UserError("/load takes the ID of a session (/sessions lists them) or a file that /save wrote")
    conversation.resume(sessions.find(one_name(rest)))
    show_resumed(conversation)


def list_sessions(conversation: Conversation, rest: str) -> None:
    action, _, name = rest.partition(" ")
    words = () if action in ("rm", "delete") else rest.split()
    if action in ("rm", "delete"):
        if not name.strip():
            raise UserError("/sessions rm ID deletes one; /sessions lists them")
        path = sessions.find(name.strip())
        if conversation.kept.session is not None and path == conversation.kept.session.path:
            raise UserError(f"{path.stem} is this conversation; /clear first")
        sessions.remove(path)
        say(f"{path.stem} is deleted")
        return
    found = sessions.listed(20, words)
    if not found:
        say("no conversation holds these words" if words else "no conversation has been saved yet")
        return
    rows = [["session", "used", "messages", "cache", "title"]]
    for path, saved in reversed(found):
        used = datetime.fromtimestamp(path.stat().st_mtime)
        cache = path.with_suffix(".cache")
        size = bytes_text(cache.stat().st_size) if cache.exists() else "-"
        rows.append([path.stem, f"{used:%d %b %H:%M}", str(len(saved.messages)), size, saved.title()])
    say(columns(rows, right=[2, 3], width=window(sys.stderr)[0]))


def rename(conversation: Conversation, rest: str) -> None:
    if not conversation.messages:
        raise UserError("nothing has been asked yet")
    if not conversation.kept.saving:
        raise UserError("this conversation is not being saved")
    title = rest
    if not title:
        ask = {"role": "user", "content": "Give our conversation a title of at most six words. Write only the title."}
        answer = conversation.aside(conversation.messages, ask, 32, "/rename TITLE asks nobody")
        title = one_line(answer.text).strip(" \"'#*.")
    if not title:
        raise UserError("the model gave no title; /rename TITLE sets one")
    conversation.rename(title[:80])
    if conversation.kept.session is not None:  # else a line has said why not
        say(f"{conversation.kept.session.id}: {title[:80]}")


def export_to(conversation: Conversation, rest: str) -> None:
    path, replace = _file(rest)
    kind = path.suffix.casefold()
    if kind not in (".md", ".json"):
        raise UserError("/export takes the name of a file that ends in .md or .json")
    c = conversation
    title = brief(next((m.get("typed", m["content"]) for m in c.messages if m["role"] == "user"), ""))
    text = (
        export.as_json(c.model_name, c.system, c.messages)
        if kind == ".json"
        else export.as_markdown(title, c.model_name, c.system, c.messages)
    )
    sessions.write_new(path, text.encode("utf-8", "replace"), replace)
    say(f"{path}: {counted(len(c.messages), 'message')}")


def copy(conversation: Conversation, rest: str) -> None:
    text = conversation.last_answer()["content"]
    if rest == "code":
        blocks = export.code_blocks(text)
        if not blocks:
            raise UserError("the last answer has no code block")
        text = blocks[-1]
    elif rest:
        raise UserError("/copy takes the last answer, /copy code its last code block")
    data = visible(text).encode("utf-8", "replace")
    if not sys.stderr.isatty():
        raise UserError("there is no terminal whose clipboard could be used")
    if len(data) > _COPY_LIMIT:
        raise UserError(f"the answer has {len(data):,} bytes; terminals take {_COPY_LIMIT:,} (/export FILE.md writes it to a file)")
    sys.stderr.write(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
    say(f"{counted(len(text), 'character')} handed to the terminal's clipboard, if it has one")


def show_resumed(conversation: Conversation) -> None:
    """Tell which conversation goes on, with its last exchange."""
    c = conversation
    what = f"{c.kept.session.id} · " if c.kept.session else ""
    note(f"{what}{counted(len(c.messages), 'message')}, {c.used():,} of {c.model.n_ctx:,} tokens of context")
    if not c.messages:
        return
    last = c.messages[c.last_question() :]
    say(f"> {brief(last[0].get('typed', last[0]['content']))}")
    if len(last) == 1:
        note("the last message has no answer; /regen answers it")
    for message in last[1:]:
        if message["content"]:
            say(message["content"])


def brief(text: str) -> str:
    """The beginning of a text, on one line."""
    line = one_line(text[:200])
    return line if len(line) <= 60 else line[:59] + "…"
