"""Jinja templates at work. One that a model file carries is a stranger's program, so it runs in a process of its own.

Jinja's sandbox keeps a template from files and from Python's insides, but not from computing for ever or from filling the memory.
The process has a limit for both: whatever the template does, its caller gets a text or one UserError. It starts with the first
such template and then serves all of them, one request and one answer a line, until its input ends. It loads nothing but Jinja.
"""

import atexit
import json
import math
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import UserError

if TYPE_CHECKING:
    import jinja2

MAX_PROMPT = 16 << 20  # characters
SECONDS, MEMORY = 2, 256 << 20  # processor time of one prompt; bytes beyond those that Python itself has mapped
_PATIENCE = 60.0  # seconds until a silent process is ended: processor time is no limit for one that waits
_NESTED = "messages or tools are nested too deeply for a chat template"
_SOURCES = Path(__file__).parents[2]  # an editable installation finds us through a hook, which -S leaves out
_SERVE = "import sys; sys.path[:] = sys.argv[1:]; from glmrun.chat.sandbox import serve; serve()"


def render(source: str, context: dict[str, Any]) -> str:
    """The text that a template makes of its variables, in this process: for our own template.

    Raises UserError: usage where the template refuses the messages, failed where it fails.
    """
    from jinja2 import TemplateSyntaxError

    try:
        return _joined(_template(source).generate(context))
    except UserError:
        raise
    except RecursionError:
        raise UserError(_NESTED, "usage") from None
    except TemplateSyntaxError as error:
        raise UserError(f"the chat template is no valid Jinja, line {error.lineno}: {one_line(error)}") from error
    except Exception as error:  # whatever a program of others raises
        raise UserError(f"the chat template failed: {one_line(error)}") from error


@lru_cache(maxsize=8)
def _template(source: str) -> "jinja2.Template":
    from jinja2 import nodes
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} text {% endgeneration %}: marks for training what the model wrote; the text stands as it is."""

        tags = {"generation"}  # noqa: RUF012  # as the base class has it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation])
    environment.filters["tojson"] = to_json  # jinja2's own escapes for HTML
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(source)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The tojson filter as published templates expect it; ensure_ascii is accepted and ignored, as it would escape the marks."""
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def one_line(error: object) -> str:
    """What an error says, for the user."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _raise(message: object) -> None:
    raise UserError(f"the chat template refuses these messages: {one_line(message)}", "usage")


def _joined(pieces: Any) -> str:
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_PROMPT:
            raise UserError(f"the chat template wrote more than {MAX_PROMPT} characters")
    return "".join(parts)


# ---- the other process -----------------------------------------------------------------------------------------------

_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def render_apart(source: str, context: dict[str, Any]) -> str:
    """The same in the other process: for any template. Variables travel as JSON; what is no JSON raises TypeError or ValueError."""
    request = json.dumps({"source": source, "context": context}).encode() + b"\n"
    with _lock:
        answer = json.loads(_ask(request))
    if "error" in answer:
        raise UserError(answer["error"], answer["kind"])
    return answer["text"]


def _ask(request: bytes) -> bytes:
    global _process
    if _process is None or _process.poll() is not None:
        command = [sys.executable, "-I", "-S", "-c", _SERVE, str(_SOURCES), *map(str, sys.path)]
        _process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        atexit.register(_end, _process)
    process, line = _process, b""
    assert process.stdin and process.stdout
    timer = threading.Timer(_PATIENCE, process.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        line = process.stdout.readline()
    finally:
        timer.cancel()
        if not line.endswith(b"\n"):  # it has ended, or this thread was interrupted and would get the answer next time
            _end(process)
            _process = None
    if not line.endswith(b"\n"):
        raise UserError(f"the chat template was stopped: it took more than {SECONDS} s or {MEMORY >> 20} MiB of memory")
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            if pipe:
                pipe.close()
    atexit.unregister(_end)


def serve() -> None:
    """What the other process does: answer requests on standard input, one JSON line each, until there are no more."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the caller decides
    _limit_memory()
    for line in sys.stdin.buffer:
        _limit_seconds()
        try:
            answer: dict[str, Any] = {"text": render(**json.loads(line))}
        except RecursionError:  # in the variables
            answer = {"error": _NESTED, "kind": "usage"}
        except UserError as why:
            answer = {"error": str(why), "kind": why.kind}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_seconds() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + SECONDS, hard))
