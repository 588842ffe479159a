"""MLflow's webhook as the operator takes it: whom it believes, and how it is registered."""

import asyncio
import base64
import hashlib
import hmac
import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from irlops.errors import PairError, UnavailableError
from irlops.operator.webhook import EVENT, FRESH_S, MAX_BODY_BYTES, PATH, handler, is_signed, keep_registered

SECRET, BODY, NOW_S = "not-a-real-secret", b'{"entity": "model_version_alias"}', 1_700_000_000


def signed(body: bytes = BODY, *, secret: str = SECRET, sent_s: int = NOW_S) -> dict[str, str]:
    """Headers as MLflow documents them."""
    digest = hmac.new(secret.encode(), b"delivery-1." + str(sent_s).encode() + b"." + body, hashlib.sha256).digest()
    return {
        "X-MLflow-Delivery-Id": "delivery-1",
        "X-MLflow-Timestamp": str(sent_s),
        "X-MLflow-Signature": "v1," + base64.b64encode(digest).decode(),
    }


def test_what_mlflow_signed_just_now_is_believed():
    assert is_signed(SECRET, signed(), BODY, now_s=NOW_S + 5)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(), BODY + b" "),
        (signed(secret="another"), BODY),
        (signed(sent_s=NOW_S - int(FRESH_S) - 1), BODY),
        (signed() | {"X-MLflow-Timestamp": "soon"}, BODY),
        (signed() | {"X-MLflow-Delivery-Id": "delivery-2"}, BODY),
        (signed() | {"X-MLflow-Signature": "ü"}, BODY),
        ({}, BODY),
    ],
    ids=["other body", "other secret", "old", "no time", "other delivery", "no signature of ours", "nothing"],
)
def test_anything_else_is_not(headers, body):
    assert not is_signed(SECRET, headers, body, now_s=NOW_S)


@pytest.mark.parametrize(
    ("headers", "body", "status", "num_nudges"),
    [(signed(), BODY, 204, 1), ({}, BODY, 401, 0), (signed(), b" " * (MAX_BODY_BYTES + 1), 413, 0)],
    ids=["signed", "unsigned", "too large"],
)
async def test_only_a_signed_call_nudges(headers, body, status, num_nudges):
    nudges = []
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post(PATH, handler(SECRET, lambda: nudges.append(1), now_s=lambda: NOW_S))
    async with TestClient(TestServer(app)) as client:
        answer = await client.post(PATH, data=body, headers=headers)
    assert (answer.status, len(nudges)) == (status, num_nudges)


class Mlflow:
    """Remembers its webhooks; answers the first calls with ``troubles``."""

    def __init__(self, *troubles: Exception) -> None:
        self.known: dict[str, dict] = {}
        self._troubles = list(troubles)

    def webhooks(self):
        if self._troubles:
            raise self._troubles.pop(0)
        return [{"webhook_id": key, **fields} for key, fields in self.known.items()]

    def create_webhook(self, fields):
        self.known[f"w{len(self.known)}"] = dict(fields)

    def update_webhook(self, webhook_id, fields):
        self.known[webhook_id] = dict(fields)


async def keep(mlflow: Mlflow, url: str = "http://operator:8081/registry", secret: str = SECRET) -> None:
    await asyncio.wait_for(keep_registered(mlflow, name="irlops", url=url, secret=secret, retry_s=0), 30)


async def test_it_is_registered_once_and_follows_a_new_secret():
    mlflow = Mlflow()
    await keep(mlflow)
    await keep(mlflow, secret="newer")
    assert list(mlflow.known.values()) == [
        {"name": "irlops", "url": "http://operator:8081/registry", "events": [EVENT], "secret": "newer"}
    ]


async def test_it_waits_for_an_mlflow_that_is_away():
    mlflow = Mlflow(UnavailableError("away"), UnavailableError("still away"))
    await keep(mlflow)
    assert len(mlflow.known) == 1


async def test_a_refusal_is_said_once_and_polling_goes_on(caplog):
    with caplog.at_level(logging.WARNING):
        await keep(Mlflow(PairError("Invalid webhook URL scheme: 'http'")))
    assert "seen by polling" in caplog.text
    assert SECRET not in caplog.text
