"""`glmrun serve`: the model for other programs, over HTTP."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmrun.cli import loading, options
from glmrun.terminal.console import note, say
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.server.service import Options


def serve(
    context: typer.Context,
    model_name: Annotated[str | None, loading.MODEL] = None,
    named: loading.Named = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8080,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", metavar="KEY", envvar="GLMRUN_API_KEY", show_envvar=False, help="Clients must send it."),
    ] = None,
    served_name: options.ServedName = None,
    slots: options.Slots = 4,
    cache_ram: options.CacheRam = None,
    cache_disk: options.CacheDisk = None,
    cache_disk_size: options.CacheDiskSize = None,
    answer_timeout: options.AnswerTimeout = 3600,
    reasoning_field: options.ReasoningField = "both",
    metrics_prefix: options.MetricsPrefix = "glmrun:",
    log_format: options.LogFormat = "text",
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", metavar="URL", help="Pages of this address may ask; may be repeated.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option("--allowed-host", metavar="NAME", help="Answer under this name, too; may be repeated.")
    ] = None,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    draft: options.Draft = "auto",
    draft_exact: options.DraftExact = False,
) -> None:
    """Serve a model to other programs: editors, agents, web pages, evaluation harnesses.

    It speaks OpenAI's interfaces (chat completions, completions, responses), Anthropic's and Ollama's, and has a page for the
    browser at its address. Any model name that a client sends means the one that is served. Several clients are answered at once;
    each gets the answer that it would get alone, and a conversation that goes on is read only from where it is new.

    The server listens to this machine only; --host 0.0.0.0 opens it to the network, then with --api-key or the variable
    GLMRUN_API_KEY. Ctrl-C lets answers end for 10 seconds, a second one ends at once. Standard error has a line for each
    request, without what was said.

    \b
    Examples:
      glmrun serve flash
      glmrun serve flash --host 0.0.0.0 --port 8000 -c 64K --parallel 2
      curl localhost:8080/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Hi"}]}'
      glmrun run --url http://localhost:8080/v1 "Name three rivers"
    """
    from glmrun.engine.disk_cache import DiskCache
    from glmrun.machine import available_memory
    from glmrun.server.guard import is_local
    from glmrun.server.listen import bound, listening, wait_for_signal
    from glmrun.server.log import line
    from glmrun.server.service import Service

    if not is_local(host) and api_key is None:
        note(f"warning: {host} can be reached from other machines, and nobody needs a key; set one with --api-key")
    quiet = log_format == "none"
    service = Service(_options(context), lambda record: None if quiet else say(line(record, log_format == "json")))
    with bound(host, port) as where, listening(service, where):
        model = loading.load_model(loading.resolve_model(loading.one_model(model_name, named)), **options.of_engine(context))
        model.measure()
        model.keep(cache_ram if cache_ram is not None else available_memory() // 4)
        if cache_disk is not None:
            model.keep_on_disk(DiskCache(Path(os.path.expanduser(cache_disk)), cache_disk_size or 8 << 30, model, note))
        service.model = model
        shown = "localhost" if is_local(host) else host
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{where.getsockname()[1]}"
        key = "any key" if api_key is None else "your key"
        note(f"{model.name} at {address} (page) and {address}/v1 (base URL for clients; any model name, {key})")
        wait_for_signal()
        note("ending; answers have 10 s, Ctrl-C ends them now")
    model.close()


def _options(context: typer.Context) -> "Options":
    """The command's options as the server's."""
    from glmrun.server.guard import Access, is_local
    from glmrun.server.service import Options

    given = context.params
    if (key := given["api_key"]) is not None and not key.strip():
        raise UserError("the key is empty; leave it out, or set one of several characters", "usage")
    origins, hosts = given["cors_origin"] or [], given["allowed_host"] or []
    access = Access(key, tuple(origins), tuple(hosts) if is_local(given["host"]) else None)
    return Options(
        access,
        given["served_name"],
        given["slots"],
        seconds=given["answer_timeout"],
        reasoning_field=given["reasoning_field"],
        metrics_prefix=given["metrics_prefix"],
    )
