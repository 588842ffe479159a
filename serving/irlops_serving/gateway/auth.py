"""Authentication: API keys by their hash, tokens of an identity provider by their signature."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import jwt

from irlops.errors import ConfigError
from irlops_serving.gateway.callers import ANONYMOUS, Caller
from irlops_serving.gateway.errors import ApiError, unauthorized, upstream_unavailable
from irlops_serving.gateway.keys import KeyEntry, hash_key, read_key_file
from irlops_serving.gateway.logs import logger
from irlops_serving.gateway.metrics import Metrics, labelled
from irlops_serving.gateway.settings import AuthSettings, OidcSettings

MIN_SECONDS_BETWEEN_JWKS_READS = 10.0
# While the provider is away. Without a pause, everybody with a made-up token waits for a read of their own, one after another.
SECONDS_AFTER_A_FAILED_READ = 1.0
JWKS_LIMIT_S = 5.0
MAX_REMEMBERED_TOKENS = 4096


class Authenticator:
    """Turns an ``Authorization`` header into a Caller."""

    def __init__(self, settings: AuthSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._keys = KeyRing(settings.keys_file, metrics) if settings.keys_file else None
        self._oidc = IdentityProvider(settings.oidc) if settings.oidc else None

    @property
    def is_open(self) -> bool:
        """Whether anybody may call."""
        return self._keys is None and self._oidc is None

    async def authenticate(self, header: bytes | None) -> Caller:
        """Who sends ``header``.

        Raises:
            ApiError: 401 without a valid key or token; 503 when the identity provider's keys can't be read.
        """
        if self.is_open:
            return ANONYMOUS
        credential = _bearer(header)
        if self._oidc is not None and credential.count(".") == 2:
            return await self._oidc.caller_of(credential)
        if self._keys is None:
            raise unauthorized("Send a token of your identity provider as 'Authorization: Bearer TOKEN'.")
        return self._keys.caller_of(credential)

    def reload_if_changed(self) -> None:
        """Read the key file again when it changed."""
        if self._keys is not None:
            self._keys.reload_if_changed()


def _bearer(header: bytes | None) -> str:
    if header is None:
        raise unauthorized("No API key was sent. Send it as 'Authorization: Bearer KEY'.")
    scheme, _, credential = header.decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise unauthorized("The Authorization header is not 'Bearer KEY'.")
    return credential.strip()


class KeyRing:
    """The key file in memory, hot reloaded; a file that became unreadable leaves the old keys in force."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path, self._metrics = path, metrics
        self._seen = self._stamp()
        self._callers = self._read()

    def caller_of(self, key: str) -> Caller:
        """The caller with this key. Looking a hash up leaks nothing about other keys through its timing."""
        entry = self._callers.get(hash_key(key))
        if entry is None:
            raise unauthorized("The API key is not known here. Ask the operator of this gateway for one.")
        caller, expires = entry
        if expires is not None and expires <= datetime.now(UTC):
            raise unauthorized(
                f"Your API key {caller.name!r} expired at {expires:%Y-%m-%d %H:%M:%SZ}. Ask for a new one."
            )
        return caller

    def reload_if_changed(self) -> None:
        """One ``stat``; a read only after a change."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._callers = self._read()
        except ConfigError as error:
            labelled(self._metrics.reloads, "keys", "failed").inc()
            logger.error("keys_not_reloaded", error=str(error))
        else:
            labelled(self._metrics.reloads, "keys", "ok").inc()
            logger.info("keys_reloaded", num_keys=len(self._callers))

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> dict[str, tuple[Caller, datetime | None]]:
        return {digest: (_caller(entry), entry.expires) for digest, entry in read_key_file(self._path).items()}


def _caller(entry: KeyEntry) -> Caller:
    models = None if entry.models is None else frozenset(entry.models)
    return Caller(entry.name, models, entry.requests_per_minute, entry.tokens_per_minute)


class IdentityProvider:
    """Verifies signed tokens; its public keys are read when an unknown key id appears."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at_s = -MIN_SECONDS_BETWEEN_JWKS_READS
        self._failed_at_s = -SECONDS_AFTER_A_FAILED_READ
        self._reading = asyncio.Lock()
        self._verified: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    async def caller_of(self, token: str) -> Caller:
        """The caller a valid token names.

        Raises:
            ApiError: 401 for a token that is forged, expired, or for another audience.
        """
        digest = hash_key(token)
        known = self._verified.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        claims = await self._verify(token)
        caller = self._caller(claims)
        self._verified[digest] = (caller, float(claims["exp"]))
        if len(self._verified) > MAX_REMEMBERED_TOKENS:
            self._verified.popitem(last=False)
        return caller

    async def _verify(self, token: str) -> dict[str, Any]:
        settings = self._settings
        try:
            key = await self._key(jwt.get_unverified_header(token).get("kid"))
            return jwt.decode(
                token, key, algorithms=list(settings.algorithms), audience=settings.audience, issuer=settings.issuer,
                leeway=settings.leeway_s, options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise unauthorized(f"The token was refused: {error}. Get a new one from your identity provider.") from None

    async def _key(self, key_id: str | None) -> jwt.PyJWK:
        if key_id not in self._keys:
            await self._read_keys()
        try:
            return self._keys[key_id]
        except KeyError:
            raise unauthorized("The token is signed with a key that the identity provider does not publish.") from None

    async def _read_keys(self) -> None:
        async with self._reading:
            if time.monotonic() - self._failed_at_s < SECONDS_AFTER_A_FAILED_READ:
                raise _provider_unavailable()
            if time.monotonic() - self._read_at_s < MIN_SECONDS_BETWEEN_JWKS_READS:
                return
            try:
                async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=JWKS_LIMIT_S)) as session:
                    keys = jwt.PyJWKSet.from_dict(await _get_json(session, await self._jwks_url(session))).keys
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, jwt.PyJWTError) as error:
                self._failed_at_s = time.monotonic()
                logger.error("jwks_not_read", error=repr(error))
                raise _provider_unavailable() from error
            self._keys, self._read_at_s = {key.key_id: key for key in keys}, time.monotonic()

    async def _jwks_url(self, session: aiohttp.ClientSession) -> str:
        if self._settings.jwks_url is not None:
            return self._settings.jwks_url
        base = self._settings.issuer.rstrip("/")
        return (await _get_json(session, f"{base}/.well-known/openid-configuration"))["jwks_uri"]

    def _caller(self, claims: dict[str, Any]) -> Caller:
        name = claims.get(self._settings.name_claim)
        if not isinstance(name, str) or not name:
            raise unauthorized(f"The token has no claim {self._settings.name_claim!r} to name its caller by.")
        if self._settings.models_claim is None:
            return Caller(name)
        models = claims.get(self._settings.models_claim)
        return Caller(name, frozenset(models) if isinstance(models, list) else frozenset())


async def _get_json(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(url, raise_for_status=True) as response:
        return await response.json(content_type=None)


def _provider_unavailable() -> ApiError:
    return upstream_unavailable("identity_provider", 5)
