"""The pair that answers: its two servers, held by every running request, swapped without dropping one."""

from __future__ import annotations

import asyncio

from irlops.contracts.rerank import PairVersions
from irlops_serving.gateway.breaker import CircuitBreaker
from irlops_serving.gateway.critic import CriticClient
from irlops_serving.gateway.logs import logger
from irlops_serving.gateway.metrics import Metrics, labelled
from irlops_serving.gateway.policy import PolicyClient
from irlops_serving.gateway.settings import GatewaySettings, PairSettings
from irlops_serving.gateway.tracing import Tracer
from irlops_serving.gateway.upstream import Upstream

SWAP_RETRY_S = 1.0


class Backends:
    """Clients of one pair. Made from the ``pair`` section; closed when replaced and its last request has ended."""

    def __init__(self, settings: GatewaySettings, metrics: Metrics, tracer: Tracer) -> None:
        self.pair: PairSettings = settings.pair
        self.versions = PairVersions(
            policy_version=settings.pair.policy_version, critic_version=settings.pair.critic_version
        )
        timeouts, policy, critic = settings.timeouts, settings.pair.policy, settings.pair.critic
        self.policy = PolicyClient(
            Upstream(
                "policy", policy.url, _breaker(settings), timeouts, metrics, policy.api_key, policy.ca_file
            ), policy, timeouts.policy_s, timeouts.tokenize_s, tracer,
        )  # fmt: skip
        self.critic = CriticClient(
            Upstream(
                "critic", critic.url, _breaker(settings), timeouts, metrics, critic.api_key, critic.ca_file
            ), critic, timeouts.critic_s, metrics, tracer,
        )  # fmt: skip
        self._metrics = metrics
        self.ready = {"policy": False, "critic": False}
        self.seen_ready = {"policy": False, "critic": False}
        self.num_leases = 0
        self.retired = False
        self.closing: asyncio.Future[None] | None = None

    async def probe(self) -> None:
        """Ask both servers whether they are ready, and remember the answers."""
        await asyncio.gather(self._probe("policy", self.policy), self._probe("critic", self.critic))

    async def _probe(self, name: str, client: PolicyClient | CriticClient) -> None:
        try:
            async with asyncio.timeout(5):
                self.ready[name] = await client.ready()
        except (TimeoutError, OSError):
            self.ready[name] = False
        self.seen_ready[name] |= self.ready[name]
        labelled(self._metrics.upstream_ready, name).set(self.ready[name])
        labelled(self._metrics.breaker_open, name).set(client.upstream.breaker.is_open)

    def close_if_unused(self) -> None:
        """After a swap: close once the last request has left, without making that request wait for it."""
        if self.retired and self.num_leases == 0:
            self.closing = asyncio.ensure_future(self.close())

    async def close(self) -> None:
        """Close every connection to both servers."""
        await asyncio.gather(self.policy.upstream.close(), self.critic.upstream.close())


class Lease:
    """``async with pairs.lease() as backends``: holds the pair; the last to leave a retired one closes it."""

    __slots__ = ("_backends",)

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def __aenter__(self) -> Backends:
        self._backends.num_leases += 1
        return self._backends

    async def __aexit__(self, *_: object) -> None:
        self._backends.num_leases -= 1
        self._backends.close_if_unused()


def _breaker(settings: GatewaySettings) -> CircuitBreaker:
    return CircuitBreaker(settings.breaker.failures, settings.breaker.open_s)


class Pairs:
    """Holds the pair in force; ``swap`` replaces it once the next one is ready."""

    def __init__(self, first: Backends, metrics: Metrics) -> None:
        self.current, self._metrics = first, metrics
        self._say_which(first)

    def lease(self) -> Lease:
        """The pair for one request, from its first byte to its last: a swap in between does not touch it."""
        return Lease(self.current)

    async def swap(self, following: Backends) -> None:
        """Wait until both servers of ``following`` answer ready, then send every new request there.

        Cancelling (a newer pair was configured meanwhile) leaves the pair in force as it is.
        """
        try:
            await following.probe()
            while not all(following.ready.values()):
                await asyncio.sleep(SWAP_RETRY_S)
                await following.probe()
        except BaseException:
            await following.close()
            raise
        previous, self.current = self.current, following
        self._say_which(following)
        labelled(self._metrics.reloads, "pair", "ok").inc()
        logger.info("pair_swapped", **following.versions.model_dump())
        previous.retired = True
        previous.close_if_unused()

    def _say_which(self, backends: Backends) -> None:
        self._metrics.pair.clear()
        versions = backends.versions
        # Not through the cache of ``labelled``: clear() has orphaned the children that it remembers.
        self._metrics.pair.labels(versions.policy_version, versions.critic_version).set(1)

    def readiness(self) -> tuple[bool, dict[str, object]]:
        """Whether to send requests here, and why.

        Not before policy and critic have both answered ready once. Later a missing critic degrades answers (to the
        majority vote) but keeps the gateway ready: without it there would be no answers at all.
        """
        backends = self.current
        started = all(backends.seen_ready.values())
        ready = started and backends.ready["policy"]
        return ready, {
            "ready": ready,
            "degraded": ready and not backends.ready["critic"],
            "policy": "ready" if backends.ready["policy"] else "unavailable",
            "critic": "ready" if backends.ready["critic"] else "unavailable",
            "pair": backends.versions.model_dump(),
        }
