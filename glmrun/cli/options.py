"""Options that several commands share, and how their values are read."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from glmrun.repl.tool_calls import Approve
from glmrun.settings import SETTINGS, persona, variable
from glmrun.terminal.sizes import size_of
from quant.errors import UserError
from quant.text import decode_text


def parse_size(text: str) -> int:
    """`32768`, `32k` (32,000) or `32K` (32,768) as a number."""
    try:
        return size_of(text)
    except UserError as why:
        raise typer.BadParameter(str(why)) from None


def context_of(ctx: int | None, limit: int) -> int:
    """Tokens of the context that was asked for, or else the usual one; raises BadParameter beyond what the model takes."""
    from glmrun.gguf.architecture import DEFAULT_CONTEXT

    if ctx is not None and ctx > limit:
        raise typer.BadParameter(f"-c: a context of {ctx:,} tokens; this model takes at most {limit:,}")
    return min(DEFAULT_CONTEXT, limit) if ctx is None else ctx


def output_file(name: str | None) -> str | None:
    """The name of a file to be written; raises BadParameter for -, where other programs write into a pipe."""
    if name == "-":
        raise typer.BadParameter("- would be a file of that name and not standard output; name a file")
    return name


def parse_memory(text: str) -> int:
    """`512M` or `8G` as bytes."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([mMgG])[iI]?[bB]?", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not an amount of memory; write it like 512M or 8G")
    return int(float(found[1]) * (1 << (20 if found[2] in "mM" else 30)))


def parse_kv_type(text: str) -> str:
    """text, if it names a type of cached values."""
    from glmrun.measure.plan import CACHE_BITS

    if text not in CACHE_BITS:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(CACHE_BITS)}")
    return text


def parse_draft(text: str) -> str:
    """text, if it names a kind of drafts."""
    from glmrun.engine.draft_kinds import checked_draft

    try:
        return checked_draft(text)
    except UserError as why:
        raise typer.BadParameter(str(why)) from None


def setting(key: str) -> dict[str, Any]:
    """What makes an option a setting: its limits, and its variable. `glmrun config` lists them all, so --help does not."""
    limits = {"min": SETTINGS[key].least, "max": SETTINGS[key].most}
    return {"envvar": variable(key), "show_envvar": False, **limits}


def parse_preset(text: str) -> str:
    """text, if it names a preset of sampling settings."""
    from glmrun.engine.sampling import PRESETS

    if text not in PRESETS:
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(PRESETS)}")
    return text


Ctx = Annotated[
    int | None,
    typer.Option(
        "-c",
        "--ctx",
        "--ctx-size",
        parser=parse_size,
        metavar="N",
        help="Context length in tokens: 8192, 32k, 64K. Left out: what the model allows, within reason.",
        **setting("context"),
    ),
]
KvType = Annotated[
    str | None,
    typer.Option(
        "--kv-type",
        parser=parse_kv_type,
        metavar="NAME",
        help="Type of cached values: f16, q8_0 (half the memory) or f32. Left out: f16, or f32 where no matrix is quantized.",
        **setting("kv_type"),
    ),
]
Threads = Annotated[
    int | None, typer.Option("-t", "--threads", metavar="N", help="Threads; left out: one per core.", **setting("threads"))
]
Draft = Annotated[
    str,
    typer.Option(
        "--draft",
        parser=parse_draft,
        metavar="NAME",
        help="Verify several guessed tokens at once: off, ngram (wherever the text repeats itself), mtp (by the prediction layer; "
        "mtp:3 three at a time) or auto (where that is faster).",
        **setting("draft"),
    ),
]
DraftExact = Annotated[
    bool,
    typer.Option(
        "--draft-exact/--draft-loose",
        help="Short drafts only, with which every number is bit for bit as without drafts. A seed asks for it, too.",
        **setting("draft_exact"),
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option("-n", "--max-tokens", metavar="N", help="Stop the answer after N tokens.", **setting("max_tokens"))
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temp",
        "--temperature",
        metavar="X",
        help="0 always takes the likeliest token. Left out: the model file's value, else 1.0.",
        **setting("temperature"),
    ),
]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="X", help="Keep the likeliest tokens that sum to X.", **setting("top_p"))
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="N", help="Keep the N likeliest tokens; 0 keeps all.", **setting("top_k"))
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="X", help="Drop tokens less likely than X times the likeliest.", **setting("min_p")),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option("--repeat-penalty", metavar="X", help="Make recent tokens less likely; 1 is off.", **setting("repeat_penalty")),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same answer.", **setting("seed"))]
System = Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="System prompt.", **setting("system"))]
Think = Annotated[bool, typer.Option("--think/--no-think", help="Let the model think before it answers.", **setting("think"))]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Talk to a server with OpenAI's interface: http://host:8000/v1. MODEL is a name there.",
        **setting("url"),
    ),
]
ToolsFile = Annotated[
    Path | None, typer.Option("--tools", metavar="FILE.py", help="Offer the documented, typed functions of this file as tools.")
]
Approval = Annotated[Approve, typer.Option("--approve", help="Whether tool calls are carried out: always, if you say so, never.")]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        parser=parse_preset,
        metavar="NAME",
        help="The makers' settings: default (temp 1, top-p 0.95), coding (0.7, 1) or agent (0, thinking kept).",
        **setting("preset"),
    ),
]
ThinkBudget = Annotated[
    int | None,
    typer.Option(
        "--think-budget",
        metavar="N",
        help="Close the thinking after N tokens and go on with the answer.",
        **setting("think_budget"),
    ),
]
PreserveThinking = Annotated[
    bool,
    typer.Option(
        "--preserve-thinking/--clear-thinking",
        help="Keep the thinking of earlier answers in the prompt.",
        **setting("preserve_thinking"),
    ),
]
Log = Annotated[bool, typer.Option("--log/--no-log", help="Keep the question and its answer on this machine.", **setting("log"))]


def take_persona(context: typer.Context, name: str | None) -> str | None:
    """A persona's values as this command's defaults: below what is typed and the variables, above the config file."""
    if name is not None:
        context.default_map = {**(context.default_map or {}), **persona(name)}
    return name


Persona = Annotated[
    str | None,
    typer.Option(
        "--persona",
        metavar="NAME",
        is_eager=True,
        callback=take_persona,
        help="System prompt, settings and tools of a file NAME.toml (see glmrun prompts).",
    ),
]
KeepCache = Annotated[
    bool,
    typer.Option(
        "--keep-cache/--no-keep-cache",
        help="Keep the model's cache on disk, too: --continue then reads nothing again.",
        **setting("keep_cache"),
    ),
]
History = Annotated[bool, typer.Option("--history/--no-history", help="Save messages and the conversation.", **setting("history"))]
Vi = Annotated[bool, typer.Option("--vi/--emacs", help="The keys of the line editor.", **setting("vi"))]


Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.", **setting("host"))]
Port = Annotated[int, typer.Option("--port", metavar="N", help="0 takes a free one.", **setting("port"))]
ServedName = Annotated[
    str | None,
    typer.Option("--served-model-name", metavar="NAME", help="What clients see as the model.", **setting("served_model_name")),
]
Slots = Annotated[int, typer.Option("--parallel", metavar="N", help="Answers at once; others wait.", **setting("parallel"))]
CacheRam = Annotated[
    int | None,
    typer.Option(
        "--cache-ram",
        parser=parse_memory,
        metavar="SIZE",
        help="Memory for conversations that wait for their next turn: 512M, 8G. Left out: a quarter of what is free.",
        **setting("cache_ram"),
    ),
]
CacheDisk = Annotated[
    Path | None,
    typer.Option(
        "--cache-disk",
        metavar="FOLDER",
        help="Keep conversations there, too: after a restart they are read from it. It holds what was said, as tokens.",
        **setting("cache_disk"),
    ),
]
CacheDiskSize = Annotated[
    int | None,
    typer.Option(
        "--cache-disk-size",
        parser=parse_memory,
        metavar="SIZE",
        help="The most that the folder may take: 512M, 20G. Left out: 8G.",
        **setting("cache_disk_size"),
    ),
]
AnswerTimeout = Annotated[
    int, typer.Option("--timeout", metavar="SECONDS", help="The most that an answer may take.", **setting("timeout"))
]
ReasoningField = Annotated[
    Literal["both", "reasoning_content", "reasoning", "none"],
    typer.Option("--reasoning-field", help="Where OpenAI's clients find the thinking.", **setting("reasoning_field")),
]
MetricsPrefix = Annotated[
    str,
    typer.Option(
        "--metrics-prefix",
        metavar="TEXT",
        help="Of the names at /metrics: vllm: fits dashboards for it.",
        **setting("metrics_prefix"),
    ),
]
LogFormat = Annotated[
    Literal["text", "json", "none"], typer.Option("--log-format", help="Of the line for each request.", **setting("log_format"))
]


def text_argument(text: str, what: str) -> str:
    """text, unless the shell passed bytes that are not UTF-8."""
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{what} is not valid UTF-8", "usage")
    return text


def read_stdin() -> str:
    """All of standard input as text; raises UserError as stdin_lines() and decode_text() do."""
    return decode_text(b"".join(stdin_lines()), "standard input")


def read_text(file: str) -> str:
    """A text file, - for standard input; raises UserError as read_stdin() and decode_text() do."""
    return read_stdin() if file == "-" else decode_text(Path(file).read_bytes(), file)


def stdin_lines() -> Iterator[bytes]:
    """The lines of standard input, none where the shell closed it. Raises UserError if it can't be read."""
    try:
        # Not `yield from`, which would close the stream for whoever stops early.
        for line in sys.stdin.buffer if sys.stdin else ():  # noqa: UP028
            yield line
    except OSError as why:
        raise UserError(f"standard input can't be read: {why.strerror}") from None


def sampling(context: typer.Context) -> dict[str, Any]:
    """What a command's options give of ChatRequest.of(); what was typed beats a preset, which beats the settings."""
    from glmrun.engine.sampling import PRESETS

    names = ("temp", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "max_tokens")
    arguments = {name: "temperature" if name == "temp" else name for name in names if context.params[name] is not None}
    given = {argument: context.params[name] for name, argument in arguments.items()}
    preset = context.params["preset"]
    flags = {argument: context.params[name] for name, argument in arguments.items() if typed(context, name)}
    return given | (PRESETS[preset] if preset else {}) | flags


ENGINE = ("ctx", "threads", "kv_type", "draft", "draft_exact")  # options that only a model on this machine has


def of_engine(context: typer.Context) -> dict[str, Any]:
    """Those options of a command as loading.load_model() takes them."""
    return {name: context.params[name] for name in ENGINE}


def origins(context: typer.Context) -> dict[str, str]:
    """Where each setting in sampling() comes from, in words."""
    from glmrun.engine.sampling import PRESETS

    preset, persona_name = context.params["preset"], context.params.get("persona")
    words = {"COMMANDLINE": "the command line", "DEFAULT_MAP": "the config file"}
    of_persona, found = persona(persona_name) if persona_name else {}, {}
    for name in sampling(context):
        parameter = "temp" if name == "temperature" else name
        source = context.get_parameter_source(parameter)
        kind = source.name if source is not None else ""
        if preset is not None and kind != "COMMANDLINE" and name in PRESETS[preset]:
            found[name] = f"preset {preset}"
        elif kind == "DEFAULT_MAP" and parameter in of_persona:
            found[name] = f"persona {persona_name}"
        else:
            found[name] = words.get(kind, variable(name) if kind == "ENVIRONMENT" else "default")
    return found


def typed(context: typer.Context, parameter: str) -> bool:
    """Whether an option was given on the command line, and not by a variable or the config file."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def system_prompt(context: typer.Context, goes_on: bool) -> str | None:
    """The system prompt to begin with; for what goes on, which has its own, only one that was typed, or that of a persona."""
    system, name = context.params["system"], context.params["persona"]
    if goes_on and not typed(context, "system") and "system" not in (persona(name) if name else {}):
        return None
    return None if system is None else text_argument(system, "the system prompt")


def server_url(context: typer.Context, model: str | None) -> str | None:
    """The server that a command talks to: --url, or the setting's unless MODEL is a file; None for this machine."""
    url: str | None = context.params["url"]
    if url and not typed(context, "url") and model is not None and (model.endswith(".gguf") or os.path.isfile(model)):
        return None
    return url or None


def refuse_beside_url(context: typer.Context, *names: str) -> None:
    """Raise if options that only an engine on this machine has were given on the command line beside a server."""
    for name in names:
        if typed(context, name):
            by = "--url" if typed(context, "url") else f"{variable('url')} is set"
            raise typer.BadParameter(f"{by}: the server decides about {name.replace('_', '-')}; leave it out")
