"""One replica of a job: its process, started as often as need be, and what it prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from irlops.contracts.pytorchjob import RestartPolicy
from irlops.local.pods import LocalPod
from irlops.local.processes import SupervisedProcess, describe_exit, start_supervised

_READ_BYTES = 1 << 20
_COMPLAINT = re.compile(r"Error( \(rank \d+\))?: |[A-Za-z_][\w.]*(Error|Exception): ")
"""Our own message, or the last line of a traceback."""
_OF_OTHERS = re.compile(r"Another worker is gone|Its message stands above|goes on from its last checkpoint")
_LINE_END = re.compile(rb"\r\n|\n|\r")  # progress bars end their lines with \r


class Replica:
    """Started and stopped by the runner; each start has a log file of its own."""

    def __init__(self, pod: LocalPod, log_dir: Path, *, grace_s: float) -> None:
        self._pod, self.log_dir, self.grace_s = pod, log_dir, grace_s
        self._process: SupervisedProcess | None = None
        self._num_starts = 0
        self._read, self._rest = 0, b""

    @property
    def name(self) -> str:
        return self._pod.name

    @property
    def kind(self) -> str:
        return self._pod.kind

    @property
    def restart_policy(self) -> RestartPolicy:
        return self._pod.restart_policy

    @property
    def log_file(self) -> Path:
        """Of the latest start: ``worker-0.log``, then ``worker-0.restart-1.log``."""
        suffix = f".restart-{self._num_starts - 1}" if self._num_starts > 1 else ""
        return self.log_dir / f"{self.name}{suffix}.log"

    @property
    def has_ended(self) -> bool:
        return self._process is not None and not self._process.is_running

    @property
    def exit_code(self) -> int:
        """Of the latest start, 128 + N after signal N; call only when it has ended."""
        code = self._process.exit_code if self._process else None
        assert code is not None
        return code if code >= 0 else 128 - code  # negative when the guard itself was killed, which ends the replica

    def start(self) -> None:
        """Start it, or start it again."""
        self._num_starts += 1
        self._read, self._rest = 0, b""
        self._process = start_supervised(
            self.name,
            self._pod.command,
            log_file=self.log_file,
            environment=self._pod.environment,
            working_dir=self._pod.working_dir,
            grace_s=self.grace_s,
        )

    def ask_to_stop(self) -> None:
        if self._process:
            self._process.ask_to_stop()

    def end_now(self) -> None:
        """Make sure that nothing of it runs any more."""
        if self._process and self._process.is_running:
            self._process.ask_to_stop()
            self._process.hurry()
            self._process.stop()

    def new_lines(self) -> Iterator[str]:
        """What it printed since the last call, in whole lines; the rest as well once it has ended."""
        if self._process is None:
            return
        ended = self.has_ended  # asked first: what it prints after this is read by the next call
        with self.log_file.open("rb") as log:
            log.seek(self._read)
            while chunk := log.read(_READ_BYTES):
                self._read += len(chunk)
                *lines, self._rest = _LINE_END.split(self._rest + chunk)
                yield from (line.decode(errors="replace") for line in lines if line)
        if ended and self._rest:
            rest, self._rest = self._rest, b""
            yield rest.decode(errors="replace")

    def describe_end(self) -> str:
        """``worker-1: killed by SIGKILL``."""
        return f"{self.name}: {describe_exit(self.exit_code)}"

    def last_words(self) -> str:
        """The line that says most about its end: what a worker complained of, or else the last line."""
        lines = self._process.last_lines(200).splitlines() if self._process else []
        complaints = [line for line in lines if _COMPLAINT.match(line)]
        # Workers that lost a peer, and the launcher, complain of somebody else's failure.
        own = [line for line in complaints if not _OF_OTHERS.search(line)]
        return (own or complaints or lines or ["It printed nothing."])[-1][:1000]
