"""What several tests share: small random models, written once per run."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.checkpoint_folder import write_folder
from support.tiny_model import ODD, Tiny, write_tiny

from glmrun.warmup import compile_all
from quant.config import Config

if TYPE_CHECKING:
    from support.served import Served

    from glmrun.engine.model import Model

# The checks against transformers and llama.cpp need both installed: `pytest tests/live` asks for them, plain `pytest` does not.
collect_ignore = ["live"]


def pytest_sessionstart(session: pytest.Session) -> None:
    """The kernels are compiled before a test imports them, on all cores.

    A shell starts what runs in its background deaf to Ctrl-C, nohup to the terminal's end, and children inherit that: programs
    under test are to hear both.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    state = tempfile.TemporaryDirectory(prefix="glmrun-state-", ignore_cleanup_errors=True)
    session.config.add_cleanup(state.cleanup)
    os.environ["XDG_STATE_HOME"] = state.name  # calls that tests make are none of the user's
    compile_all()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tiny]:
    """make(choice="Q4_K_M", config=ODD, ...) -> Tiny: a random model file, the same one for the same request."""
    made: dict[tuple[object, ...], Tiny] = {}

    def make(choice: str = "Q4_K_M", config: Config = ODD, seed: int = 0, eog_ids: bool = True) -> Tiny:
        request = (choice, config, seed, eog_ids)
        if request not in made:
            path: Path = tmp_path_factory.mktemp("tiny") / f"{choice}.gguf"
            made[request] = write_tiny(path, config, choice, seed, eog_ids)
        return made[request]

    return make


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model folder."""
    return write_folder(tmp_path_factory.mktemp("original") / "Small-GLM")


@pytest.fixture(scope="module")
def nano() -> "Iterator[Model]":
    """The model that comes along; a file of tests may have one of its own under this name."""
    import glmrun  # not before the kernels are compiled

    with glmrun.load(n_ctx=1024) as model:
        yield model


@pytest.fixture(scope="module")
def server(nano: "Model") -> "Iterator[Served]":
    """`glmrun serve` with that model behind it."""
    from support.served import served

    with served(nano) as found:
        yield found


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(original, tmp_path / "copy"))
