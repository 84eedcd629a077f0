"""Whether a mapped file is still the file that was checked.

A mapped file that another program shortens ends the process at the next touched page (SIGBUS), which no Python code can catch. So
its size and time are compared before each step. Between steps a lease helps on Linux: whoever opens the file to write or shorten
it is made to wait (some 45 s at most), and the next step sees that. A file that is replaced, by renaming another over it, stays
as it was for whoever has it open.
"""

import os
import weakref
from pathlib import Path

from quant.errors import UserError
from quant.system import give_lease_back, holds_lease, take_lease


class Watched:
    """An open file; owns the descriptor."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor, self._leased = path, descriptor, False
        weakref.finalize(self, os.close, descriptor)  # which gives the lease back
        self._was = self._now()

    def lease(self) -> bool:
        """Make writers wait while this object lives; whether the system does so. It needs the file's owner and a local disk."""
        self._leased = take_lease(self.descriptor)
        return self._leased

    def status(self) -> os.stat_result:
        """What the system says of it now."""
        return os.fstat(self.descriptor)

    def is_ours(self) -> bool:
        """Whether this user owns the file or may write it: to others the system does not report which pages are in memory."""
        return self.status().st_uid == os.geteuid() or os.access(self.path, os.W_OK)

    def check(self) -> None:
        """Raise UserError if the file was or is about to be changed; after that, always."""
        waiting = self._leased and not holds_lease(self.descriptor)
        if waiting or self._now() != self._was:
            self._was = (-1, -1)
            if self._leased:
                self._leased = False
                give_lease_back(self.descriptor)
            raise UserError(f"{self.path}: the model file has been changed by another program; open it again")

    def _now(self) -> tuple[int, int]:
        status = self.status()
        return status.st_size, status.st_mtime_ns
