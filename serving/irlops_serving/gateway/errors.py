"""What a client reads when a request is refused: OpenAI's error shape, a status, and when to come back."""

from __future__ import annotations

import math

import orjson

from irlops.errors import IrlopsError


class ApiError(IrlopsError):
    """A request answered with an error. Its message is shown to the client: no addresses, no secrets.

    Made only by the functions below, which keep status, type and code in step.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    def body(self) -> bytes:
        """OpenAI's ``{"error": {...}}`` as JSON bytes."""
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """``Retry-After`` in whole seconds (rounded up), ``WWW-Authenticate`` on 401."""
        headers: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


class ClientGone(Exception):  # noqa: N818 - an event, not a failure: nobody is left to answer
    """The client closed its connection; upstream work was cancelled."""


def _error(
    message: str,
    *,
    status: int,
    type: str,
    code: str | None,
    param: str | None = None,
    retry_after_s: float | None = None,
) -> ApiError:
    error = ApiError(message)
    error.status, error.type, error.code, error.param, error.retry_after_s = status, type, code, param, retry_after_s
    return error


def invalid_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the body can't be understood or asks for what isn't allowed."""
    return _error(message, status=400, type="invalid_request_error", param=param, code=code)


def too_large(message: str) -> ApiError:
    """413: more bytes than the gateway reads."""
    return _error(message, status=413, type="invalid_request_error", code="request_too_large")


def head_too_large(limit_bytes: int) -> ApiError:
    """431: request line and headers are more than the gateway reads."""
    message = (
        f"The request's headers are larger than {limit_bytes} bytes. Send less in them; a question belongs in the body."
    )
    return _error(message, status=431, type="invalid_request_error", code="headers_too_large")


def slow_head(limit_s: float) -> ApiError:
    """408: the client did not send its headers in time."""
    message = f"The request's headers did not arrive within {limit_s:g} s. Send the request again."
    return _error(message, status=408, type="invalid_request_error", code="request_timeout")


def slow_body(limit_s: float) -> ApiError:
    """408: the client did not send its body in time."""
    message = f"The request body did not arrive within {limit_s:g} s. Send it again."
    return _error(message, status=408, type="invalid_request_error", code="request_timeout")


def unauthorized(message: str) -> ApiError:
    """401: no key, or not a valid one."""
    return _error(message, status=401, type="invalid_request_error", code="invalid_api_key")


def forbidden(message: str, param: str | None = None) -> ApiError:
    """403: a valid key that may not do this."""
    return _error(message, status=403, type="permission_error", code="model_not_allowed", param=param)


def unknown_model(model: str) -> ApiError:
    """404, as OpenAI answers an unknown model."""
    message = f"The model {model!r} does not exist. This gateway serves 'reranked' and 'policy'."
    return _error(message, status=404, type="invalid_request_error", code="model_not_found", param="model")


def unknown_route(method: str, path: str) -> ApiError:
    """404: no such route."""
    message = f"No such route: {method} {path[:200]}. GET /docs lists the routes."
    return _error(message, status=404, type="invalid_request_error", code="unknown_url")


def wrong_method(method: str, path: str) -> ApiError:
    """405: the route exists under another method."""
    message = f"{path} does not answer {method}. GET /docs lists the routes."
    return _error(message, status=405, type="invalid_request_error", code="method_not_allowed")


def rate_limited(message: str, retry_after_s: float) -> ApiError:
    """429: a budget of this key is spent."""
    return _error(message, status=429, type="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s)


def overloaded(message: str, retry_after_s: float) -> ApiError:
    """503: the gateway's queues are full."""
    message += f" Try again in {max(1, math.ceil(retry_after_s))} s."
    return _error(message, status=503, type="service_unavailable", code="overloaded", retry_after_s=retry_after_s)


def budgets_unavailable() -> ApiError:
    """503: the store that all gateways count budgets in does not answer. Refused, for nobody knows what is left."""
    message = "The store of the budgets does not answer. Try again in a moment."
    return _error(message, status=503, type="service_unavailable", code="budgets_unavailable", retry_after_s=1.0)


def upstream_unavailable(upstream: str, retry_after_s: float = 1.0) -> ApiError:
    """503 that names which server does not answer."""
    message = f"The {upstream} server does not answer. Try again in {max(1, math.ceil(retry_after_s))} s."
    return _error(
        message, status=503, type="service_unavailable", code=f"{upstream}_unavailable", retry_after_s=retry_after_s
    )


def upstream_timeout(upstream: str, phase: str, limit_s: float) -> ApiError:
    """504 that names the server and the phase."""
    message = f"The {upstream} server took longer than {limit_s:g} s ({phase}). Ask for fewer tokens, or try again."
    return _error(message, status=504, type="server_error", code=f"{upstream}_timeout")


def upstream_broken(upstream: str, what: str) -> ApiError:
    """502: the server answered with what isn't its protocol, or stopped halfway."""
    message = f"The {upstream} server {what}. Try again; if it stays, its operator must look."
    return _error(message, status=502, type="server_error", code=f"{upstream}_bad_response")


def upstream_refused(status: int, message: str, param: str | None, code: str | None) -> ApiError:
    """A 4xx of the policy, passed on: the client can change what it asked."""
    return _error(message, status=status, type="invalid_request_error", code=code, param=param)


def deadline_passed(deadline_ms: int) -> ApiError:
    """504: the deadline passed before a single token was there to answer with."""
    message = f"No token was sampled within deadline_ms={deadline_ms}. Raise rerank.deadline_ms."
    return _error(message, status=504, type="server_error", code="deadline_exceeded", param="rerank.deadline_ms")


def internal() -> ApiError:
    """500 without details; the log has them under the request id."""
    message = "The gateway failed on this request. Its log has the details under the x-request-id of this response."
    return _error(message, status=500, type="server_error", code="internal_error")
