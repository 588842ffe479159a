"""The certificate that the gateway shows, read again when its files change: issuers replace it every few weeks."""

from __future__ import annotations

import ssl
from pathlib import Path

from irlops_serving.gateway.logs import logger
from irlops_serving.gateway.metrics import Metrics, labelled


class ServedCertificate:
    """Connections made after a change get the new certificate; running ones keep theirs."""

    def __init__(self, context: ssl.SSLContext, cert_file: Path, key_file: Path, metrics: Metrics) -> None:
        self._context, self._cert_file, self._key_file, self._metrics = context, cert_file, key_file, metrics
        self._seen = self._content()

    def reload_if_changed(self) -> None:
        """Look at both files; a pair that doesn't fit together leaves the old one in force."""
        content = self._content()
        if content is None or content == self._seen:
            return
        self._seen = content
        try:
            # Tried apart first: a context that took half of a wrong pair could greet nobody any more.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._context):
                context.load_cert_chain(self._cert_file, self._key_file, password="")
        except OSError as error:  # an SSLError is one
            labelled(self._metrics.reloads, "certificate", "failed").inc()
            logger.error("certificate_not_reloaded", error=str(error))
        else:
            labelled(self._metrics.reloads, "certificate", "ok").inc()
            logger.info("certificate_reloaded")

    def _content(self) -> tuple[bytes, bytes] | None:
        try:
            return self._cert_file.read_bytes(), self._key_file.read_bytes()
        except OSError:
            return None  # a Secret is being exchanged: look again next time
