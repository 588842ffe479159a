"""The gateway's HTTP interface, for the commands that talk to it (standard library only: it imports in no time)."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any

from irlops.contracts.rerank import RerankResult, RewardsResponse
from irlops.errors import ConfigError, UnavailableError

DEFAULT_URL = "http://127.0.0.1:8080"

OnProgress = Callable[[int, int, int], None]
"""Called with candidates sampled, scored and requested."""


@dataclass(frozen=True)
class Answer:
    """The gateway's answer to one question. Made by ``ask_gateway``; consumed by ``irlops ask`` and the demo."""

    text: str
    rerank: RerankResult | None
    """None when the plain policy answered."""


def gateway_url(url: str | None) -> str:
    """``url``, or IRLOPS_GATEWAY_URL, or where ``irlops serve`` listens."""
    return (url or os.environ.get("IRLOPS_GATEWAY_URL") or DEFAULT_URL).rstrip("/").removesuffix("/v1")


def ask_gateway(
    url: str,
    question: str,
    rerank: dict[str, Any],
    *,
    model: str,
    timeout_s: float,
    on_progress: OnProgress,
    **extra: Any,
) -> Answer:
    """Send one question and follow the stream of progress until the answer is there.

    Raises:
        ConfigError: the gateway refused the request (4xx), with its own reason.
        UnavailableError: it does not answer, or failed; the same question may work later.
    """
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, **extra}
    if model == "reranked":
        body["rerank"] = rerank
    text, result = "", None
    with _post(f"{url}/v1/chat/completions", body, timeout_s) as response:
        for chunk in _events(response):
            if error := chunk.get("error"):
                raise UnavailableError(
                    f"The gateway broke off: {_without_stop(error.get('message', error))}. Ask again."
                )
            if progress := chunk.get("rerank_progress"):
                counts = (progress.get(f"candidates_{name}", 0) for name in ("sampled", "scored", "requested"))
                on_progress(*counts)
            for choice in chunk.get("choices", []):
                text += (choice.get("delta") or {}).get("content") or ""
            result = chunk.get("rerank") or result
    return Answer(text, RerankResult.model_validate(result, extra="ignore") if result else None)


def score_solution(
    url: str, question: str, solution: str, *, aggregation: str | None = None, timeout_s: float = 120.0
) -> RewardsResponse:
    """Token rewards of one solution; errors as in ``ask_gateway``."""
    body: dict[str, Any] = {"items": [{"question": question, "solution": solution}], "granularity": "token"}
    if aggregation:
        body["aggregation"] = aggregation
    with _post(f"{url}/v1/rewards", body, timeout_s) as response:
        return RewardsResponse.model_validate(json.load(response), extra="ignore")


@contextmanager
def _post(url: str, body: dict[str, Any], timeout_s: float) -> Iterator[HTTPResponse]:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("IRLOPS_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the user's own address
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            yield response
    except urllib.error.HTTPError as error:
        raise _explained(error, url) from error
    except TimeoutError as error:
        raise UnavailableError(
            f"{url} gave nothing for {timeout_s:.0f} s. Ask for fewer candidates or --timeout."
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(
            f"No gateway answers at {url} ({reason}). Start one with `irlops serve`, or say where it is: --url or "
            "IRLOPS_GATEWAY_URL."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{url} is no address of a gateway ({error}). Write --url http://HOST:PORT.") from error


def _explained(error: urllib.error.HTTPError, url: str) -> ConfigError | UnavailableError:
    raw = error.read()
    try:
        message = json.loads(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = raw.decode(errors="replace").strip()[:200] or error.reason
    message = _without_stop(message)
    if error.code in (401, 403):
        return ConfigError(f"The gateway at {url} wants a valid key ({message}). Put it into IRLOPS_API_KEY.")
    if error.code == 404:
        return ConfigError(f"{url} is not there ({message}). Is this the address of a gateway?")
    if 400 <= error.code < 500 and error.code not in (408, 409, 429):
        return ConfigError(f"The gateway refused the request: {message}.")
    return UnavailableError(f"The gateway answered {error.code}: {message}. Try again.")


def _without_stop(message: object) -> str:
    """Another server's words, for the middle of a sentence of ours."""
    return str(message).rstrip().removesuffix(".")


def _events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event, until ``[DONE]``."""
    for line in response:
        data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)
