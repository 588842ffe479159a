"""Secrets out of what is recorded: a resolved config goes beside the model, its passwords do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, SecretBytes, SecretStr

MASK = "**********"

_SECRET_WORDS = frozenset(
    {"password", "passwd", "passphrase", "secret", "credential", "credentials", "authorization", "apikey"}
)
_SECRET_PAIRS = frozenset(
    {("api", "key"), ("access", "key"), ("private", "key"), ("signing", "key"), ("secret", "key")}
)
_TOKEN_OWNERS = frozenset(
    {"access", "api", "auth", "bearer", "bot", "client", "github", "gitlab", "hf", "hub", "id", "mlflow", "refresh",
     "service", "session", "tracking", "user", "wandb"}
)  # fmt: skip
"""``hf_token`` is a secret; ``eos_token``, ``end_of_turn_token`` and ``max_token`` are about text."""

_SECRET_VALUES = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+)"
)


def mask_secrets(value: Any, key: str = "") -> Any:
    """``value`` as plain data (dict, list, str, number, None) with every secret replaced by ``MASK``.

    A secret is a pydantic secret, a string under a key that names one, the password of a URL, or a string that looks
    like a known kind of token. Example: ``{"hf_token": "x", "eos_token": "</s>"}`` -> only the first is masked.
    """
    if isinstance(value, (SecretStr, SecretBytes)):
        return MASK
    if isinstance(value, BaseModel):
        return {name: mask_secrets(getattr(value, name), name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(name): mask_secrets(entry, str(name)) for name, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [mask_secrets(entry, key) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _mask_text(str(value), key)


def _mask_text(text: str, key: str) -> str:
    if text and _names_a_secret(key):
        return MASK
    return _SECRET_VALUES.sub(MASK, _without_url_password(text))


def _names_a_secret(key: str) -> bool:
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", key)]
    if _SECRET_WORDS.intersection(words) or _SECRET_PAIRS.intersection(pairwise(words)):
        return True
    return words[-1:] == ["token"] and (len(words) == 1 or words[-2] in _TOKEN_OWNERS)


def _without_url_password(text: str) -> str:
    if "://" not in text or "@" not in text:
        return text
    try:
        parts = urlsplit(text)
        if parts.password is None:
            return text
    except ValueError:
        return text
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{MASK}@{host}"))
