"""What all pods of a job print, line by line, while it runs; a pod that replaces another is followed as well.

The SDK's own follower prints to the terminal, leaves out pods that are still pending and ends with the first ones.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from irlops.cluster.connection import TIMEOUT_S, Connection, explaining
from irlops.contracts.pytorchjob import CONTAINER
from irlops.errors import UnavailableError

OnLine = Callable[[str, str], None]
"""Gets each line: the pod's short name and what it said."""

_POLL_S = 2.0
_PATIENCE_S = 300.0
"""How long the API may be away before following ends; the job itself does not notice."""
_REOPEN_S = 1.0


class PodLogs:
    """The logs of all pods that a label selector finds.

    Args:
        short_name: What a pod is called before its lines.
        poll_s: Seconds between two looks at which pods there are.
    """

    def __init__(
        self,
        connection: Connection,
        selector: str,
        *,
        short_name: Callable[[str], str] = str,
        poll_s: float = _POLL_S,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        import kubernetes.client

        client: Any = kubernetes.client
        self._connection, self._selector, self._short_name = connection, selector, short_name
        self._core = client.CoreV1Api(client.ApiClient(connection.configuration))
        self._poll_s, self._patience_s = poll_s, patience_s
        self._lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._readers: dict[str, threading.Thread] = {}
        self._asked_to_end = threading.Event()

    def print_once(self, on_line: OnLine) -> int:
        """What has been printed up to now, pod by pod; the number of pods.

        Raises:
            PermanentError, UnavailableError: as ``explaining``.
        """
        pods = self._pods()
        for pod in pods:
            with explaining(f"read the log of {pod.metadata.name}", self._connection):
                text = self._core.read_namespaced_pod_log(
                    pod.metadata.name, self._connection.namespace, container=CONTAINER, _request_timeout=TIMEOUT_S
                )
            for line in text.splitlines():
                on_line(self._short_name(pod.metadata.name), line)
        return len(pods)

    def follow(self, is_over: Callable[[], bool], on_line: OnLine) -> None:
        """Pass every line on until ``is_over`` and all that was printed has been passed on.

        Args:
            is_over: Asked every ``poll_s`` seconds; may raise UnavailableError, which is borne for ``patience_s``.

        Raises:
            PermanentError, UnavailableError: as ``explaining``.
        """
        try:
            self._follow(is_over, on_line)
        finally:
            self._asked_to_end.set()

    def _follow(self, is_over: Callable[[], bool], on_line: OnLine) -> None:
        answered_at = time.monotonic()
        over = False
        while not over:
            try:
                over = is_over()  # asked before the pods are listed: what ended is then read to its end
                for pod in self._pods():
                    self._read(pod)
                answered_at = time.monotonic()
            except UnavailableError:
                if time.monotonic() - answered_at > self._patience_s:
                    raise
            self._pass_on(on_line, until=time.monotonic() + (0 if over else self._poll_s))
        for reader in self._readers.values():
            reader.join(TIMEOUT_S)
        self._pass_on(on_line, until=0)

    def _pods(self) -> list[Any]:
        """Pods whose container has begun."""
        with explaining(f"list the pods of {self._selector}", self._connection):
            found: list[Any] = self._core.list_namespaced_pod(
                self._connection.namespace, label_selector=self._selector, _request_timeout=TIMEOUT_S
            ).items
        begun = [pod for pod in found if pod.status.phase in ("Running", "Succeeded", "Failed")]
        return sorted(begun, key=lambda pod: pod.metadata.name)

    def _read(self, pod: Any) -> None:
        if pod.metadata.uid in self._readers:
            return
        reader = threading.Thread(target=self._read_to_its_end, args=(pod.metadata.name, pod.metadata.uid), daemon=True)
        self._readers[pod.metadata.uid] = reader
        reader.start()

    def _read_to_its_end(self, name: str, uid: str) -> None:
        """Read one pod's log; opened again when the connection breaks, without a line twice."""
        import urllib3
        from kubernetes.client.exceptions import ApiException

        last = ""
        while not self._asked_to_end.is_set():
            try:
                last, ended = self._stream(name, last)
            except ApiException as error:
                if error.status in (401, 403):
                    self._lines.put((self._short_name(name), f"(its log may not be read: {error.reason})"))
                    return
                ended = error.status == 404
            except (urllib3.exceptions.HTTPError, OSError):
                ended = False
            if ended and not self._still_runs(name, uid):
                return
            self._asked_to_end.wait(_REOPEN_S)

    def _stream(self, name: str, since: str) -> tuple[str, bool]:
        """Lines after the time ``since``; the time of the newest line, and whether the stream ended of itself."""
        import urllib3

        response = self._core.read_namespaced_pod_log(
            name,
            self._connection.namespace,
            container=CONTAINER,
            follow=True,
            timestamps=True,
            _preload_content=False,
            **({"since_seconds": _seconds_since(since)} if since else {}),
        )
        last, rest = since, b""
        try:
            for chunk in response.stream(4096, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    last = self._say(name, line, since) or last
        except urllib3.exceptions.HTTPError:
            return last, False
        finally:
            response.release_conn()
        return (self._say(name, rest, since) if rest else "") or last, True

    def _say(self, name: str, raw: bytes, since: str) -> str:
        """Its time, or nothing when it was said before ``since``; such times have a fixed width and sort as text."""
        moment, _, text = raw.decode(errors="replace").partition(" ")
        if moment <= since:
            return ""
        self._lines.put((self._short_name(name), text))
        return moment

    def _still_runs(self, name: str, uid: str) -> bool:
        from kubernetes.client.exceptions import ApiException

        try:
            pod: Any = self._core.read_namespaced_pod(name, self._connection.namespace, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            return error.status != 404
        except OSError:
            return True
        return pod.metadata.uid == uid and pod.status.phase == "Running"

    def _pass_on(self, on_line: OnLine, *, until: float) -> None:
        while True:
            try:
                who, line = self._lines.get(timeout=max(0.0, until - time.monotonic()) or 0.001)
            except queue.Empty:
                return
            on_line(who, line)


def _seconds_since(moment: str) -> int:
    """Whole seconds from an RFC 3339 time until now, and one more."""
    from datetime import UTC, datetime

    then = datetime.fromisoformat(moment[:19]).replace(tzinfo=UTC)
    return max(1, int((datetime.now(UTC) - then).total_seconds()) + 1)
