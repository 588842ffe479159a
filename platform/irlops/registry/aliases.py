"""Moving an alias on both halves of a pair or on neither, although MLflow moves one at a time.

The policy's alias is the truth: ``resolve`` reads it and takes the critic that this policy version names, so no reader
ever sees halves of two pairs. The critic's alias only mirrors it, for people who look at MLflow. A move is

    prepare   set the critic's alias
    commit    set the policy's alias          a single write: before it nothing happened, after it everything did
    settle    until the critic's alias is what the policy's asks for

A commit that fails is undone by settling, too. Two moves at once interleave, but each ends by settling on whatever
the policy's alias then says, so the last one leaves both aliases on one pair. A lock could be left behind by a crash.

History lies in tags of the policy version: ``champion_since.<milliseconds>`` -> ``{"before": 3}``; a tag of its own for
each promotion, so that concurrent writers never lose each other's.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from irlops.contracts.pair import CRITIC_MODEL, POLICY_MODEL, Alias, Pair
from irlops.errors import UnavailableError
from irlops.registry.client import is_missing
from irlops.registry.records import mate_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

_SINCE = "champion_since."
_MAX_SETTLING_STEPS = 50
_MAX_RACES = 5
_LOST_RACE = re.compile(r"unique constraint|duplicate (key|entry)", re.IGNORECASE)
"""How SQLite, PostgreSQL and MySQL say that a row was inserted in the meantime."""


@dataclass(frozen=True)
class Promotion:
    """One time that a policy version became champion. Example: ``Promotion(7, 1_780_000_000_000, 5)``, v7 after v5."""

    version: int
    at_ms: int
    before: int | None
    """Version that was champion until then."""
    is_rolled_back: bool = False


def aliases_of(client: MlflowClient, model: str) -> dict[str, int]:
    """Alias -> version of a registered model; empty when the model does not exist."""
    try:
        return {alias: int(version) for alias, version in client.get_registered_model(model).aliases.items()}
    except Exception as error:
        if is_missing(error):
            return {}
        raise


def move_alias(client: MlflowClient, alias: Alias, pair: Pair) -> None:
    """Set ``alias`` on both halves of ``pair``, or leave it where it was.

    Raises:
        MlflowException: the server failed or refused; the alias stands where it stood before.
        UnavailableError: it failed, and the critic's alias could not be set back either.
    """
    try:
        _set_alias(client, CRITIC_MODEL, alias, pair.critic.version)
        _set_alias(client, POLICY_MODEL, alias, pair.policy.version)
    except Exception as failure:
        _undo(client, alias, failure)
        raise
    settle_alias(client, alias)


def remove_alias(client: MlflowClient, alias: Alias) -> None:
    """Take ``alias`` off both models; the policy's first, as it is the one that counts."""
    client.delete_registered_model_alias(POLICY_MODEL, alias)
    settle_alias(client, alias)


def settle_alias(client: MlflowClient, alias: Alias) -> bool:
    """Bring the critic's alias to the pair that the policy's names; True when something had to change.

    Raises:
        UnavailableError: other processes kept moving the alias all the while.
    """
    for step in range(_MAX_SETTLING_STEPS):
        wanted, found = _critic_wanted(client, alias), aliases_of(client, CRITIC_MODEL).get(alias)
        if wanted == found:
            return step > 0
        if wanted is None:
            client.delete_registered_model_alias(CRITIC_MODEL, alias)
        else:
            _set_alias(client, CRITIC_MODEL, alias, wanted)
    raise UnavailableError(
        f"The alias {alias} is being moved by other processes without end. Try again when they are done."
    )


def torn_alias(client: MlflowClient, alias: Alias) -> str | None:
    """What is wrong with ``alias`` on the two models; None when it stands on one pair or on nothing."""
    wanted, found = _critic_wanted(client, alias), aliases_of(client, CRITIC_MODEL).get(alias)
    if wanted == found:
        return None
    return f"{alias} stands on {CRITIC_MODEL} v{found}, but the policy's {alias} belongs to v{wanted}"


def record_promotion(client: MlflowClient, version: int, at_ms: int, before: int | None) -> None:
    """Note that ``version`` is champion since ``at_ms`` (milliseconds since 1970)."""
    client.set_model_version_tag(POLICY_MODEL, str(version), f"{_SINCE}{at_ms}", json.dumps({"before": before}))


def record_rollback(client: MlflowClient, promotion: Promotion) -> None:
    """Note that a promotion was taken back; it stays in the history."""
    body = json.dumps({"before": promotion.before, "rolled_back": True})
    client.set_model_version_tag(POLICY_MODEL, str(promotion.version), f"{_SINCE}{promotion.at_ms}", body)


def promotions_in(policies: list[ModelVersion]) -> list[Promotion]:
    """Every promotion that the versions' tags tell of, oldest first."""
    found = [
        Promotion(
            int(policy.version), int(name.removeprefix(_SINCE)), body.get("before"), body.get("rolled_back", False)
        )
        for policy in policies
        for name, value in policy.tags.items()
        if name.startswith(_SINCE) and isinstance(body := json.loads(value), dict)
    ]
    return sorted(found, key=lambda promotion: promotion.at_ms)


def champion_before(promotions: list[Promotion], current: int) -> tuple[int | None, Promotion | None]:
    """Which version to go back to from ``current``, and the promotion that this takes back.

    A champion that was set by hand in MLflow has no promotion of its own: then the latest other one that stands.
    """
    standing = [promotion for promotion in promotions if not promotion.is_rolled_back]
    for promotion in reversed(standing):
        if promotion.version == current:
            return promotion.before, promotion
    return next((promotion.version for promotion in reversed(standing)), None), None


def _set_alias(client: MlflowClient, model: str, alias: Alias, version: int | None) -> None:
    """MLflow looks for an alias and then inserts it: two that set a new one at once make the slower one fail."""
    for tries_left in reversed(range(_MAX_RACES)):
        try:
            client.set_registered_model_alias(model, alias, str(version))
            return
        except Exception as error:
            if not tries_left or not _LOST_RACE.search(str(error)):
                raise


def _critic_wanted(client: MlflowClient, alias: Alias) -> int | None:
    version = aliases_of(client, POLICY_MODEL).get(alias)
    return mate_of(client.get_model_version(POLICY_MODEL, str(version))) if version is not None else None


def _undo(client: MlflowClient, alias: Alias, failure: Exception) -> None:
    try:
        settle_alias(client, alias)
    except Exception as error:
        raise UnavailableError(
            f"Moving {alias} failed ({failure}), and its mirror on {CRITIC_MODEL} could not be set back ({error}). "
            "Pairs are still resolved rightly, by the policy's alias. When the server is back: irlops pairs repair"
        ) from failure
    _log.info("Moving %s failed; it stands where it stood before.", alias)
