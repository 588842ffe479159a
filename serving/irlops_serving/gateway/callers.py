"""Who calls: the carrier that authentication makes and everything else reads."""

from __future__ import annotations

from dataclasses import dataclass

from irlops_serving.gateway.errors import ApiError, forbidden


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. Made by ``auth``; read by allowances, logs and handlers.

    Example: ``Caller(name="team-a", models=frozenset({"reranked"}), requests_per_minute=60)``
    """

    name: str
    models: frozenset[str] | None = None
    """Models it may call (``policy``, ``reranked``, ``critic``); None: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def refusal_of(self, model: str) -> ApiError | None:
        """The error to answer with if this caller may not use ``model``."""
        if self.models is None or model in self.models:
            return None
        allowed = ", ".join(sorted(self.models)) or "none"
        return forbidden(f"Your key {self.name!r} may not use the model {model!r} (allowed: {allowed}).", param="model")


ANONYMOUS = Caller(name="anonymous")
