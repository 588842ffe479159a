"""MLflow's webhook: it tells at once that an alias moved. Polling stays the truth; a call here only makes the next poll due.

Nothing of a call is believed but that it came: it must carry MLflow's signature over the shared secret, and be new.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from irlops.errors import PairError, RetryableError
from irlops.operator.registry import RestClient

_log = logging.getLogger(__name__)

PATH = "/registry"
MAX_BODY_BYTES = 64 * 1024
FRESH_S = 300.0
"""A signed call older than this may be somebody's recording."""
EVENT = {"entity": "MODEL_VERSION_ALIAS", "action": "CREATED"}


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, *, now_s: float) -> bool:
    """Whether MLflow sent these bytes lately: ``v1,`` and the base64 HMAC-SHA256 of delivery id, timestamp and body.

    Source: https://mlflow.org/docs/latest/ml/webhooks/#hmac-signature-verification
    """
    delivery, sent = headers.get("X-MLflow-Delivery-Id", ""), headers.get("X-MLflow-Timestamp", "")
    if not sent.isdecimal() or abs(now_s - int(sent)) > FRESH_S:
        return False
    digest = hmac.new(secret.encode(), f"{delivery}.{sent}.".encode() + body, hashlib.sha256).digest()
    expected = "v1," + base64.b64encode(digest).decode()
    return hmac.compare_digest(expected.encode(), headers.get("X-MLflow-Signature", "").encode())


def handler(
    secret: str, nudge: Callable[[], None], *, now_s: Callable[[], float] = time.time
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Answers 204 and calls ``nudge``, or 401 without a word on why."""

    async def answer(request: web.Request) -> web.Response:
        if not is_signed(secret, request.headers, await request.read(), now_s=now_s()):
            return web.Response(status=401)
        nudge()
        return web.Response(status=204)

    return answer


async def keep_registered(client: RestClient, *, name: str, url: str, secret: str, retry_s: float) -> None:
    """Tell MLflow where to call, once; tried again while it is away, given up with a warning when it refuses."""
    while True:
        try:
            await asyncio.to_thread(register, client, name=name, url=url, secret=secret)
        except PairError as error:
            _log.warning("MLflow takes no webhook (%s). Moved aliases are seen by polling.", error)
            return
        except RetryableError:
            await asyncio.sleep(retry_s)  # the poll warns that MLflow is away
        else:
            _log.info("MLflow calls %s when an alias moves.", url)
            return


def register(client: RestClient, *, name: str, url: str, secret: str) -> None:
    """Make the webhook, or bring the one of this name up to date: who starts anew may hold another secret.

    Raises:
        UnavailableError: MLflow does not answer.
        PairError: it refuses (a version without webhooks, a scheme or an address that it does not allow).
    """
    known = next((one for one in client.webhooks() if one.get("name") == name), None)
    wanted = {"name": name, "url": url, "events": [EVENT], "secret": secret}
    if known is None:
        client.create_webhook(wanted)
    else:
        client.update_webhook(str(known["webhook_id"]), wanted)
