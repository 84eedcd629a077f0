"""`glmrun chat`: a conversation in the terminal."""

import sys
from typing import Annotated

import typer

from glmrun.cli import loading, options


def chat(
    model: Annotated[
        str | None,
        options.MODEL,
    ] = None,
    system: options.System = None,
    max_tokens: options.MaxTokens = None,
    temp: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    think: options.Think = True,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
) -> None:
    """Chat with a model; /help lists the commands inside.

    Earlier messages come back with the arrow keys, also after a restart. Ctrl-C stops an answer and keeps what was said.
    When standard input is not a terminal, each line is a message and the answers are plain text on standard output.

    \b
    Examples:
      glmrun chat
      glmrun chat GLM-4.7-Flash-Q4_K_M.gguf -c 32k -s "Answer in one sentence."
      printf 'My name is Ada.\\nWhat is my name?\\n' | glmrun chat --no-think
    """
    if system is not None:
        options.text_argument(system, "the system prompt")
    loaded = loading.load_model(loading.resolve_model(model), ctx, threads, kv_type)

    from glmrun.terminal.console import note
    from glmrun.terminal.conversation import Conversation
    from glmrun.terminal.repl import chat_in_pipe, chat_in_terminal, interactive

    given = {
        "temperature": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p, "repeat_penalty": repeat_penalty, "seed": seed,
        "max_tokens": max_tokens,
    }  # fmt: skip
    settings = {name: value for name, value in given.items() if value is not None}
    conversation = Conversation(loaded, settings, system, think)
    if interactive():
        what = f"{loaded.path.name} · context {loaded.n_ctx:,} tokens · {loaded.n_threads} threads"
        note(f"{what} · /help lists commands, Ctrl-D leaves")
        raise typer.Exit(chat_in_terminal(conversation))
    raise typer.Exit(chat_in_pipe(conversation, sys.stdin.buffer if sys.stdin else []))
