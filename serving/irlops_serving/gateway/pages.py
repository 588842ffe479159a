"""The playground's static files, read once at start: a path that is no file of theirs is no route."""

from __future__ import annotations

import hashlib
import mimetypes
from importlib.resources import files
from importlib.resources.abc import Traversable

from irlops_serving.gateway.exchange import Exchange, Headers

# Nothing from elsewhere, nothing inline: a model's output shown on the page can't become a script.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Headers = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
]


class Pages:
    """Files by URL path; ``/`` is ``index.html``."""

    def __init__(self, root: Traversable | None = None) -> None:
        self._files: dict[str, tuple[bytes, Headers]] = {}
        base = root if root is not None else files("irlops_serving") / "playground" / "static"
        if base.is_dir():
            self._read(base, "")
        if "/index.html" in self._files:
            self._files["/"] = self._files["/index.html"]

    def has(self, path: str) -> bool:
        """Whether there is a file at ``path``."""
        return path in self._files

    async def show(self, exchange: Exchange) -> None:
        """Send the file at the request's path, or 304 when the browser has it."""
        body, headers = self._files[exchange.path]
        etag = next(value for name, value in headers if name == b"etag")
        if exchange.header(b"if-none-match") == etag:
            await exchange.respond(304, b"", headers)
            return
        await exchange.respond(200, body, headers)

    def _read(self, folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            path = f"{prefix}/{entry.name}"
            if entry.is_dir():
                self._read(entry, path)
            elif not entry.name.startswith("."):
                body = entry.read_bytes()
                self._files[path] = (body, _headers(entry.name, body))


def _headers(name: str, body: bytes) -> Headers:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    text = kind.startswith("text/") or kind in ("application/javascript", "application/json", "image/svg+xml")
    etag = '"' + hashlib.sha256(body).hexdigest()[:32] + '"'
    # no-cache: kept, but asked for again each time; an upgrade is seen at once and an unchanged file costs a 304.
    return [
        (b"content-type", (kind + ("; charset=utf-8" if text else "")).encode()),
        (b"cache-control", b"no-cache"),
        (b"etag", etag.encode()),
        *PAGE_HEADERS,
    ]
