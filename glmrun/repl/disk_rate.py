"""How fast an answer reads experts from the disk."""

import time
from typing import Any

from glmrun.machine import disk_bytes


class DiskRate:
    """Of the answer that comes, or came last; nothing where the model is in memory, or elsewhere."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None
        self._text = ""

    def begin(self, model: Any) -> None:
        """An answer of this model begins."""
        prefault = getattr(model, "prefault", None)  # a server has none
        read = disk_bytes() if prefault is not None and prefault.from_disk else None
        self._began, self._text = None if read is None else (time.monotonic(), read), ""

    def end(self) -> None:
        """It is over: its rate stays."""
        self._text, self._began = self.text(), None

    def text(self) -> str:
        """`0.82 GB/s from disk`, or nothing."""
        if self._began is None:
            return self._text
        seconds, read = time.monotonic() - self._began[0], (disk_bytes() or 0) - self._began[1]
        return f"{read / 1e9 / seconds:.2f} GB/s from disk" if seconds > 0 else ""
