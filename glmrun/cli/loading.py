"""From a MODEL argument to an open model; the first start on a machine compiles the kernels and says so."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmrun.settings import default_model
from glmrun.terminal.console import note
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.chat.remote import RemoteModel
    from glmrun.engine.model import Model
    from glmrun.store.local import LocalModel


def complete_model(incomplete: str) -> list[str]:
    """Names of models on this machine, for the shell; it completes paths itself."""
    from glmrun.store.local import local_models

    return [model.name for model in local_models() if model.name.startswith(incomplete) and model.kind != "checkpoint"]


MODEL: Any = typer.Argument(
    metavar="MODEL",
    help="A GGUF file, a name from glmrun list or a part of it, or nano. Left out: the setting, else nano.",
    autocompletion=complete_model,
    show_default=False,
)
Named = Annotated[
    str | None, typer.Option("-m", "--model", metavar="MODEL", autocompletion=complete_model, help="The same, by a flag.")
]


def one_model(argument: str | None, named: str | None) -> str | None:
    """MODEL, which every command takes as an argument or by a flag; raises BadParameter if it has both."""
    if argument is not None and named is not None:
        raise typer.BadParameter(f"MODEL is given twice, {argument} as an argument and {named} by -m; leave one out")
    return named if argument is None else argument


def names_a_model(text: str) -> bool:
    """Whether an argument is a model's whole name, or a file's."""
    if text == "nano" or text.endswith(".gguf") or os.path.exists(text):
        return True
    if "/" not in text or " " in text:
        return False
    from glmrun.store.local import local_models

    return any(text.casefold() == model.name.casefold() for model in local_models())


def means_a_model(text: str) -> bool:
    """Whether an argument is a model's name, or a part of one."""
    from glmrun.store.local import local_models, matching

    return names_a_model(text) or bool(matching(text, local_models()))


def open_model(name: str | None, url: str | None, **engine: Any) -> "Model | RemoteModel":
    """The model that a MODEL argument means: on the server at url, else on this machine; engine: load_model()'s."""
    if url is None:
        return load_model(resolve_model(name), **engine)
    from glmrun.chat.remote import RemoteModel

    return RemoteModel(url, name)


def resolve_model(model: str | None) -> Path:
    """The file that a MODEL argument means: a path, nano, or the name of a pulled or converted model or a part of it.

    Left out it is the setting's, or else nano, the small model that comes with glmrun, and a line says so. Raises UserError for
    a name that means nothing or several models.
    """
    if model is None and (model := default_model()) is None:
        note("no model given: using nano, the small model that comes with glmrun")
        model = "nano"
    if model == "nano":
        from glmrun.machine import cache_folder
        from glmrun.store.nano import is_temporary, nano_path

        path = nano_path()
        if is_temporary(path):
            note(f"{cache_folder()} can't be written: nano is a temporary file; GLMRUN_CACHE_DIR names another folder")
        return path
    if os.path.exists(model):
        return Path(model)

    from glmrun.store.local import local_models, matching

    found = [known for known in matching(model, local_models()) if known.kind != "checkpoint"]
    if not found:
        raise UserError(f"{model}: no such file, and no model on this machine is called so (glmrun list, glmrun pull)", "missing")
    chosen = only_one(model, found)
    if model.casefold() != chosen.name.casefold():
        note(f"using {chosen.name}")
    return chosen.path


def only_one(name: str, found: "list[LocalModel]") -> "LocalModel":
    """The one model that a name means; raises UserError that lists the candidates if there are several."""
    if len(found) > 1:
        raise UserError(f"{name} can mean {', '.join(model.name for model in found)}; write more of the name", "usage")
    return found[0]


def load_model(
    path: Path, ctx: int | None = None, threads: int | None = None, kv_type: str | None = None, patient: bool = True,
    draft: str = "auto", draft_exact: bool = False,
) -> "Model":  # fmt: skip
    """glmrun.load(), after compile_kernels(); a file that is no model is refused before they are loaded or compiled.

    patient   wait_for_disk() here, and not before the first answer
    """
    import glmrun
    from glmrun.gguf.architecture import open_model_file
    from glmrun.terminal.progress import BytesProgress, waiting

    file = open_model_file(path)
    for watched in file.watched:
        watched.lease()
        watched.check()  # what came before the lease
    compile_kernels()
    with ExitStack() as opening, BytesProgress(spoken=True) as bar:
        opening.enter_context(waiting(f"opening {path.name}"))

        def converting(lines: list[str], done: int, total: int) -> None:
            if not done:
                opening.close()  # two things cannot move in a terminal at once
                for line in lines:
                    note(line)
            bar.update(f"converting {path.name}", done, total)

        model = glmrun.load(
            file, n_ctx=ctx, n_threads=threads, kv_type=kv_type, converting=converting, draft=draft, draft_exact=draft_exact
        )
    if model.prefault.partial:
        note(model.prefault.partial)
    if patient:
        wait_for_disk(model)
    return model


def wait_for_disk(model: Any) -> None:
    """Wait, with a bar, until a model's file is in memory; where only pages have to be mapped that goes on beside an answer."""
    from glmrun.terminal.progress import BytesProgress

    prefault = getattr(model, "prefault", None)  # a server has none
    if prefault is None or not prefault.is_waiting_for_disk():
        return
    with BytesProgress(spoken=True) as bar:
        while not prefault.wait(0.1):
            bar.update(f"reading {model.path.name} into memory", prefault.n_done, prefault.n_bytes)


def compile_kernels() -> None:
    """Have the kernels ready; where this machine has not compiled them before, a bar or a line says that it does."""
    from glmrun.kernels.compiled.cache import are_compiled
    from glmrun.terminal.progress import work_bar
    from glmrun.warmup import compile_all

    if are_compiled():
        compile_all()
        return
    began = time.monotonic()
    with work_bar(spoken=True) as bar:
        compile_all(bar.update)
    if bar.shown:
        note(f"compiled the kernels in {time.monotonic() - began:.0f} s, once for this machine")
