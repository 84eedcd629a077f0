"""`glmrun chat`: a conversation in the terminal."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmrun import settings
from glmrun.cli import loading, options
from glmrun.repl import sessions
from glmrun.repl.tool_calls import ToolCalls
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import orderly_end, quiet_keyboard
from glmrun.terminal.sanitize import one_line
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.repl.conversation import Conversation


def complete_session(incomplete: str) -> list[tuple[str, str]]:
    """IDs of saved conversations that go on from what was typed, with what they begin with."""
    return [(path.stem, one_line(saved.title())) for path, saved in sessions.listed(20) if path.stem.startswith(incomplete)]


def chat(
    context: typer.Context,
    model: Annotated[str | None, loading.MODEL] = None,
    named: loading.Named = None,
    system: options.System = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Go on with the last conversation.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--resume",
            metavar="ID",
            autocompletion=complete_session,
            help="Go on with this one: an ID from /sessions, or a file of /save.",
        ),
    ] = None,
    persona: options.Persona = None,
    preset: options.Preset = None,
    max_tokens: options.MaxTokens = None,
    temp: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    think: options.Think = True,
    think_budget: options.ThinkBudget = None,
    preserve_thinking: options.PreserveThinking = True,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    draft: options.Draft = "auto",
    draft_exact: options.DraftExact = False,
    url: options.Url = None,
    tools_file: options.ToolsFile = None,
    approve: options.Approval = "ask",
    keep_cache: options.KeepCache = False,
    history: options.History = True,
    vi: options.Vi = False,
) -> None:
    """Chat with a model; /help lists the commands inside.

    The conversation is saved after every message: --continue goes on with it, /sessions lists all. Earlier messages come back
    with the arrow keys, @FILE puts a file into a message, Esc or Ctrl-C stops an answer and keeps what was said.
    When standard input is not a terminal, each line is a message and the answers are plain text on standard output.

    \b
    Examples:
      glmrun chat
      glmrun chat GLM-4.7-Flash-Q4_K_M.gguf -c 32k -s "Answer in one sentence."
      glmrun chat --continue --keep-cache
      glmrun chat flash --tools weather.py
      glmrun chat --url http://localhost:8000/v1
      printf 'My name is Ada.\\nWhat is my name?\\n' | glmrun chat --no-think
    """
    from glmrun.repl.conversation import Conversation, Surface, Typing
    from glmrun.repl.kept import Kept
    from glmrun.repl.loop import chat_in_pipe, chat_in_terminal, interactive

    model = loading.one_model(model, named)
    url = options.server_url(context, model)
    if url is not None:
        options.refuse_beside_url(context, *options.ENGINE, "keep_cache")
    earlier = _earlier(go_on, resume)
    system = options.system_prompt(context, earlier is not None)
    tools = ToolCalls(tools_file, approve) if tools_file is not None else None
    open_model: Callable[..., Any] = partial(loading.open_model, url=url, patient=not interactive(), **options.of_engine(context))
    if interactive():
        import_module("glmrun.repl.editor")  # now: it maps memory, which is slow while the model's file is being mapped
    typing = Typing(vi=vi, history=history) if interactive() else None
    with quiet_keyboard():  # what is typed meanwhile is for the first prompt
        conversation = Conversation(
            open_model(model if model is not None or earlier is None or url is not None else _model_of(earlier)),
            options.sampling(context),
            options.origins(context),
            thinking=think,
            preserve_thinking=preserve_thinking or preset == "agent",
            think_budget=think_budget,
            tools=tools,
            surface=Surface(typing, open_model=open_model, get_ready=loading.wait_for_disk, persona=settings.persona),
            kept=Kept(saving=history and (interactive() or earlier is not None), keep_cache=keep_cache),
        )
        _begin(conversation, earlier, system)
    try:
        with orderly_end(lambda: typing.reading) if typing is not None else nullcontext():
            code = chat_in_terminal(conversation) if interactive() else chat_in_pipe(conversation, options.stdin_lines())
        if interactive() and conversation.messages and conversation.kept.session is not None:
            note("glmrun chat --continue goes on with this conversation")
    finally:
        conversation.close()
        if tools is not None:
            tools.tools.close()
    raise typer.Exit(code)


def _earlier(go_on: bool, resume: str | None) -> Path | None:
    """The journal of the conversation that goes on, if one does. Raises UserError."""
    if go_on and resume is not None:
        raise UserError("--continue takes the last conversation and --resume another one; leave one out", "usage")
    return sessions.find(resume) if go_on or resume is not None else None


def _begin(conversation: "Conversation", earlier: Path | None, system: str | None) -> None:
    """Say what answers, and go on with an earlier conversation if there is one."""
    from glmrun.repl.loop import interactive
    from glmrun.repl.saving import show_resumed
    from glmrun.terminal.answer import counted

    model = conversation.model
    if interactive():
        threads = f" · {counted(model.n_threads, 'thread')}" if model.n_threads else ""  # a server's are its own business
        note(f"{conversation.model_name} · context {model.n_ctx:,} tokens{threads} · /help, Ctrl-D leaves")
    if earlier is not None:
        conversation.resume(earlier)
        show_resumed(conversation)
    if system is not None:
        conversation.set_system(system)


def _model_of(session: Path) -> str | None:
    """The model that a saved conversation was held with; raises UserError if it is not there any more."""
    from glmrun.machine import cache_folder

    path = sessions.read(session).model
    if Path(path).parent.parent == cache_folder() / "nano":
        return "nano"  # whose file has another place in each version
    if " at http" in path:
        raise UserError(f"the conversation was held with {path}; add --url, or name a model: glmrun chat MODEL --continue", "usage")
    if path and not Path(path).exists():
        raise UserError(
            f"the conversation was held with {path}, which is not there; name a model: glmrun chat MODEL --continue", "missing"
        )
    return path or None
