"""The command line: parse, call, render. One page per command; this one ties them together.

Nothing heavy is imported here or at the top of a command's page, so `glmrun --help` answers at once.
"""

import errno
import os
import re
import shlex
import sys
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from glmrun import settings
from glmrun.cli import (
    bench,
    chat,
    config,
    convert,
    demo,
    doctor,
    evaluate,
    imatrix,
    inspect,
    models,
    perplexity,
    plan,
    prompts,
    pull,
    run,
    serve,
    sessions,
    verify,
    warmup,
)
from glmrun.repl.flags import in_words
from glmrun.terminal.console import be_quiet, note, prepare_streams, show_error
from quant.errors import UserError

# What the machine or the user can do something about; an OSError with another number is our bug and keeps its traceback.
_OUTSIDE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.EISDIR, errno.ENOTDIR,
    errno.EMFILE, errno.ENAMETOOLONG, errno.EFBIG, errno.ENOMEM, errno.EBADF,
}  # fmt: skip

# These take options from the config file; the others work beside one that is broken.
_WITH_SETTINGS = {
    "run", "chat", "bench", "perplexity", "ppl", "eval", "imatrix", "plan", "fit", "pull", "convert", "verify", "demo", "serve",
}  # fmt: skip
_OF_NUMBA = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")  # both together choose the kernels' target; one alone can end the process
_EXIT_CODES = {"usage": 2, "missing": 3}  # of a UserError's kind; 1 of another
_ONE_TOO_MANY = {  # what a command takes, for who writes an argument more
    "chat": 'chat takes a MODEL; glmrun run MODEL "question" asks one question',
    "eval": "eval takes a MODEL and a file of questions",
}
_SAID = {  # by the library that reads numbers and choices
    "Value error, ": "",
    r"Input should be a valid number\b.*": "a number is expected",
    r"Input should be a valid integer\b.*": "a whole number is expected",
    r"Input should be a valid boolean\b.*": "true or false is expected",
    "Input should be greater than or equal to ": "expected at least ",
    "Input should be less than or equal to ": "expected at most ",
}
_USAGE_ERROR: Any = typer.BadParameter.__base__  # click's UsageError, wherever this version of Typer keeps it


class _Plain(TyperCommand):
    """A command whose usage has SRC for what must be there, as other programs', and not {SRC}."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub(r"^\{(.*)\}$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]


app = typer.Typer(
    name="glmrun",
    help="""Run GLM-4.7-Flash on an ordinary CPU: convert it to a GGUF file, ask it, chat with it, measure it.

    \b
    Examples:
      glmrun demo                                       all of it once, on nano, the small model that comes along
      glmrun pull ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M    the real model; glmrun plan reports first whether it fits
      glmrun chat flash                                 any part of a pulled model's name, or a GGUF file
      git diff | glmrun run flash "Write a commit message"
    """,
    epilog="Each command has its own help with examples: glmrun run --help. Set options for good: glmrun config show.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("run", short_help="Ask one question, print the answer.")(run.run)
app.command("chat", short_help="Chat with a model in the terminal.")(chat.chat)
app.command("serve", short_help="Serve a model to other programs.")(serve.serve)
app.command("sessions", short_help="List or search what is kept: conversations, calls.")(sessions.list_sessions)
app.command("prompts", short_help="List the prompts and personas that you keep.")(prompts.list_prompts)
app.command("convert", cls=_Plain, short_help="Turn a Hugging Face folder into a GGUF file.")(convert.convert)
app.command("verify", short_help="Prove a GGUF file intact.")(verify.verify)
app.command("imatrix", short_help="Measure which weights matter, for convert --imatrix.")(imatrix.imatrix)
app.command("bench", short_help="Measure tokens per second.")(bench.bench)
app.command("perplexity", short_help="Measure how well a model predicts a text (also: ppl).")(perplexity.perplexity)
app.command("ppl", hidden=True)(perplexity.perplexity)
app.command("eval", short_help="Ask questions with known answers, count what is right.")(evaluate.evaluate)
app.command("inspect", short_help="Show what a GGUF file holds (also: show).")(inspect.inspect)
app.command("show", hidden=True)(inspect.inspect)
app.command("warmup", short_help="Compile the kernels ahead of the first start.")(warmup.warmup)
app.command("pull", cls=_Plain, short_help="Download a model from a hub.")(pull.pull)
app.command("list", short_help="List the models on this machine (also: ls).")(models.list_models)
app.command("ls", hidden=True)(models.list_models)
app.command("rm", cls=_Plain, short_help="Delete a model from this machine.")(models.remove_model)
app.command("plan", short_help="Report whether a model fits and how fast it can be (also: fit).")(plan.plan)
app.command("fit", hidden=True)(plan.plan)
app.command("doctor", short_help="Examine this machine and the installation.")(doctor.doctor)
app.add_typer(config.app, name="config", short_help="Show the settings and where each comes from.")
app.command("demo", short_help="See all of it once, on a small model.")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from glmrun import __version__

        print(f"glmrun {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Only answers, results and errors; it may stand behind a command, too.")
    ] = False,
) -> None:
    if quiet:
        be_quiet()
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif context.invoked_subcommand in _WITH_SETTINGS:
        for line in settings.misspelt():
            note(line)
        context.default_map = {context.invoked_subcommand: _of_command(context, settings.defaults())}


def _of_command(context: typer.Context, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the config file's values that the command takes from variables, too: bench's --url is no setting."""
    commands: Any = context.command
    parameters = commands.commands[context.invoked_subcommand].params
    return {p.name: values[p.name] for p in parameters if p.envvar is not None and p.name in values}


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 failed, 2 wrong usage, 3 a model or file is missing, 130 interrupted, 141 reader gone."""
    if os.name != "posix":
        sys.exit("glmrun runs on Linux and macOS; on Windows run it inside WSL")
    given, code = sys.argv[1:] if arguments is None else arguments, 0
    try:
        _leave_behind(sys.argv if arguments is None else None)
        prepare_streams()
        command = typer.main.get_command(app)
        if "_GLMRUN_COMPLETE" in os.environ:  # a shell asks how a line could continue
            command.main(prog_name="glmrun")
        with command.make_context("glmrun", _first_guesses(command, given)) as context:
            command.invoke(context)
    except (Exception, KeyboardInterrupt) as why:
        code = _told(why, given)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        code = 141
    except OSError as why:
        if code == 0:  # else the reason has been told, and what failed then is still in the buffer
            show_error(f"the output can't be written: {why.strerror}")
            code = 1
        _discard_output()
    sys.exit(code)


def _leave_behind(started: list[str] | None) -> None:
    """What the environment still holds of other uses: switches for Numba, another window's size, a locale that is not UTF-8."""
    chosen = _OF_NUMBA if all(map(os.environ.get, _OF_NUMBA)) else ()
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/"  # as container runtimes have it for a user whom the system does not know
    sizes = ("COLUMNS", "LINES") if sys.stderr is not None and sys.stderr.isatty() else ()  # the terminal knows its own
    for name in [name for name in os.environ if (name.startswith("NUMBA_") and name not in chosen) or name in sizes]:
        del os.environ[name]
    if started and sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def _ended_by(why: BaseException) -> int | None:
    """The exit code of the signal that ended the program, if the error only came then, or Python made one of it."""
    while (earlier := why.__context__) is not None:
        if isinstance(earlier, SystemExit) and isinstance(earlier.code, int):
            return earlier.code
        why = earlier
    return None


def _output_fails(why: OSError) -> bool:
    """Whether an error that names no file came from writing what was asked for; after one of a full disk nothing may be left."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _told(why: Exception | KeyboardInterrupt, arguments: list[str]) -> int:
    """Say what ended a command, where that needs words; its exit code. What is our own bug is raised again."""
    if isinstance(why, typer.Exit):
        return why.exit_code
    if isinstance(why, UserError):
        show_error(in_words(why))
        return _EXIT_CODES.get(why.kind, 1)
    if isinstance(why, KeyboardInterrupt | typer.Abort):
        return 130
    if isinstance(why, BrokenPipeError):
        _discard_output()
        return 141
    if isinstance(why, _USAGE_ERROR):
        show_error(_usage_text(why, arguments))
        return 2
    if isinstance(why, RuntimeError) and str(why) == "can't start new thread":
        show_error("the system starts no more threads; raise the limit on processes (ulimit -u, a container's pids limit)")
        return 1
    if (ended := _ended_by(why)) is not None:
        return ended
    if not isinstance(why, OSError) or why.errno not in _OUTSIDE:
        raise why
    place = f"{os.fsdecode(why.filename)}: " if isinstance(why.filename, str | bytes) else ""
    if not place and _output_fails(why):
        place = "the output can't be written: "
    show_error(f"{place}{why.strerror}")
    return 3 if why.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR) else 1


def _first_guesses(command: Any, arguments: list[str]) -> list[str]:
    """`help run` as `run --help`, `version` as `--version`, and --quiet in front, wherever it stands before `--`.

    So does -q, behind a command that has no -q of its own.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    called = next((command.commands[word] for word in arguments[:end] if word in command.commands), command)
    has_own = called is not command and any("-q" in parameter.opts for parameter in called.params)
    quiet = {"--quiet"} if has_own else {"--quiet", "-q"}
    given = [word for word in arguments[:end] if word not in quiet] + arguments[end:]
    if given[:1] == ["help"]:
        given = [*(word for word in given if word != "help"), "--help"]
    elif given == ["version"]:
        given = ["--version"]
    return ["--quiet", *given] if quiet & {*arguments[:end]} else given


def _usage_text(why: Any, arguments: list[str]) -> str:
    """What is wrong with a command line, with the name of what holds the wrong value, and where to read on."""
    parameter, source = getattr(why, "param", None), None
    if parameter is not None and why.ctx is not None:
        source = why.ctx.get_parameter_source(parameter.name)
    text = why.format_message()
    for said, ours in _SAID.items():
        text = re.sub(said, ours, text)
    if parameter is not None and source is not None and source.name in ("ENVIRONMENT", "DEFAULT_MAP"):
        place = parameter.envvar if source.name == "ENVIRONMENT" else f"{settings.config_path()}: {parameter.name}"
        text = f"{place}: {re.sub(r'^Invalid value[^:]*: ', '', text)}"
    option, options = getattr(why, "option_name", ""), getattr(why, "possibilities", None) or ()
    if why.ctx is not None and why.ctx.parent is None:
        return _first_word(text, option, arguments)
    if near := get_close_matches(option, options):
        text = f"there is no option {option}; do you mean {near[0]}?"
    if (name := why.ctx.info_name if why.ctx else None) in _ONE_TOO_MANY and "unexpected extra argument" in text:
        text = _ONE_TOO_MANY[name]
    commands = [word for word in arguments[:1] if any(word == command.name for command in app.registered_commands)]
    path = why.ctx.command_path if why.ctx else " ".join(["glmrun", *commands])
    return f"{text} ({path} --help tells more)"


def _first_word(text: str, option: str, arguments: list[str]) -> str:
    """What is wrong with a command line that names no command: an option in front, a question, a model, another word."""
    word = next((word for word in arguments if not word.startswith("-") and word != "help"), "")
    near = re.search(r"Did you mean '(\w+)'", text)
    what, meant = f"there is no command {word!r}", near[1] if near else "--help"
    if option:
        what, meant = f"{option} stands behind a command", "run --help"
    elif " " in word:
        meant = f"run {shlex.quote(word)}"
    elif word == "nano" or word.endswith(".gguf"):
        meant = f"chat {shlex.quote(word)}"
    return f"{what}; do you mean glmrun {meant}?"


def _discard_output() -> None:
    """Nobody reads any more: let the interpreter's last flush go nowhere instead of printing a complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
