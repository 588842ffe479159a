"""The most memory that this process and everything below it held at one moment."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

_EVERY_S = 1.0


class PeakMemory:
    """Looks at the process tree once a second, in the background, between ``with`` and its end.

    The resident memory of all processes is summed as it is: libraries that several of them share count for each, so
    the real need is below the number.
    """

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self.peak_bytes = 0
        self._every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)

    @property
    def peak_mib(self) -> int:
        return round(self.peak_bytes / 2**20)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        import psutil

        this = psutil.Process()
        while True:
            self.peak_bytes = max(self.peak_bytes, resident_bytes(this))
            if self._ended.wait(self._every_s):
                return


def resident_bytes(process: Any) -> int:
    """Resident memory of a ``psutil.Process`` and all its descendants; those that end meanwhile count nothing."""
    import psutil

    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue
    return total
