"""What all paths of the server share: the model, the desk, how it is used."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from glmrun.engine.model import Model
from glmrun.server.desk import Busy, Desk
from glmrun.server.guard import Access
from glmrun.server.meters import Meters
from glmrun.server.reply import Record


@dataclass(frozen=True)
class Options:
    """How the server is used.

    access            who may ask
    name              under which the model is served; None: its own
    n_places          answers at once
    n_waiting         requests more that may wait
    seconds           for which an answer may take
    reasoning_field   reasoning_content, reasoning, both or none
    metrics_prefix    of the names of metrics
    """

    access: Access = field(default_factory=Access)
    name: str | None = None
    n_places: int = 4
    n_waiting: int = 32
    seconds: float = 3600.0
    reasoning_field: str = "both"
    metrics_prefix: str = "glmrun:"


class Service:
    """What the paths share. Without a model everything but /health says that it is being opened."""

    def __init__(self, options: Options, log: Callable[[Record], None]) -> None:
        """log() is called with each answered request."""
        self.options, self._log = options, log
        self.desk = Desk(options.n_places, options.n_waiting, options.seconds)
        self.meters = Meters(options.metrics_prefix, self.desk)
        self.model: Model | None = None
        self.came = time.time()

    @property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.options.name or (self.model.name.removesuffix(".gguf") if self.model else "loading")

    def done(self, record: Record) -> None:
        """A request for answers is over."""
        self.meters.count(record, self.name)
        self._log(record)

    def opened(self) -> Model:
        """The model. Raises Busy while it is being opened."""
        if self.model is None:
            raise Busy("the model is being opened; ask again in a moment", 2)
        return self.model
