"""Which pair the gateway answers with, by its own word."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from irlops.contracts.pipeline_status import PairVersions
from irlops.operator.observed import GatewayAnswer

TIMEOUT_S = 5.0


class HttpGateway:
    """Asks /readyz; no answer is an answer too."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/readyz"

    async def answer(self) -> GatewayAnswer:
        """Whether it is ready, and with which pair."""
        # A gateway that speaks https inside the cluster has a certificate for its public name; only readiness is read.
        tls: bool = not self._url.startswith("https")
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
                session.get(self._url, ssl=tls) as response,
            ):
                return read_readiness(json.loads(await response.text()))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return GatewayAnswer(detail=f"{self._url}: {type(error).__name__}: {error}"[:300])


def read_readiness(body: Any) -> GatewayAnswer:
    """The gateway's body of /readyz; a critic that is away is not healthy for a roll-out, though answers go on."""
    if not isinstance(body, dict) or not isinstance(pair := body.get("pair"), dict):
        return GatewayAnswer(detail=f"it said {body!r:.200}")
    versions = PairVersions(
        policy_version=str(pair.get("policy_version")), critic_version=str(pair.get("critic_version"))
    )
    is_ready = bool(body.get("ready")) and not body.get("degraded")
    detail = f"policy {body.get('policy')}, critic {body.get('critic')}, {versions.policy_version}"
    return GatewayAnswer(is_ready=is_ready, pair=versions, detail=detail)
