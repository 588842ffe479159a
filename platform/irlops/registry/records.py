"""A pair as tags of two model versions, and back.

Tags of both halves: pair_policy_version, pair_critic_version, data_digest, base_model, tokenizer_digest,
weights_digest, git_commit, run_name, evaluation (JSON). The pair is complete once each half names the other;
``pair_critic_version`` on the policy is written last, so that single write is what makes a pair exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from irlops.contracts.pair import (
    ALIASES,
    CRITIC_MODEL,
    POLICY_MODEL,
    EvaluationSummary,
    Pair,
    PairHalf,
    PairLineage,
    Role,
)
from irlops.errors import PairError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

POLICY_VERSION_TAG = "pair_policy_version"
CRITIC_VERSION_TAG = "pair_critic_version"
EVALUATION_TAG = "evaluation"

MODEL_NAMES: Mapping[Role, str] = {"policy": POLICY_MODEL, "critic": CRITIC_MODEL}


def half_tags(
    half: PairHalf, tokenizer_digest: str, lineage: PairLineage, evaluation: EvaluationSummary | None
) -> dict[str, str]:
    """What is known of one half before versions are given out."""
    tags = {
        "irlops_role": half.role,
        "tokenizer_digest": tokenizer_digest,
        "weights_digest": half.weights_digest,
        "base_model": half.base_model,
        "data_digest": lineage.data_digest,
        "git_commit": lineage.git_commit,
        "run_name": lineage.run_name,
        EVALUATION_TAG: evaluation.model_dump_json() if evaluation else None,
    }
    return {name: value for name, value in tags.items() if value is not None}


def pair_from_versions(policy: ModelVersion, critic: ModelVersion | None, policy_aliases: Mapping[str, int]) -> Pair:
    """The pair that a policy version and its critic version are.

    Args:
        policy_aliases: Alias -> version of irlops-policy; the policy's alias speaks for the pair.

    Raises:
        PairError: the two do not name each other.
    """
    if (
        critic is None
        or mate_of(policy) != int(critic.version)
        or _tag(critic, POLICY_VERSION_TAG) != str(policy.version)
    ):
        raise PairError(
            f"{POLICY_MODEL} v{policy.version} has no critic beside it (it names v{_tag(policy, CRITIC_VERSION_TAG)}, "
            f"and that one names v{_tag(critic, POLICY_VERSION_TAG) if critic else None}): a registration was cut "
            "short, or a half was deleted. Register the pair again; `irlops pairs list` shows the whole ones."
        )
    evaluation = _tag(policy, EVALUATION_TAG)
    return Pair(
        policy=_half(policy, "policy"),
        critic=_half(critic, "critic"),
        tokenizer_digest=_tag(policy, "tokenizer_digest") or "",
        lineage=PairLineage(
            run_id=policy.run_id or None,
            run_name=_tag(policy, "run_name"),
            data_digest=_tag(policy, "data_digest"),
            policy_base_model=_tag(policy, "base_model"),
            critic_base_model=_tag(critic, "base_model"),
            git_commit=_tag(policy, "git_commit"),
        ),
        evaluation=EvaluationSummary.model_validate_json(evaluation) if evaluation else None,
        aliases=tuple(alias for alias in ALIASES if policy_aliases.get(alias) == int(policy.version)),
        registered_at_ms=policy.creation_timestamp,
    )


def mate_of(policy: ModelVersion) -> int | None:
    """Version of the critic that a policy version names."""
    named = _tag(policy, CRITIC_VERSION_TAG)
    return int(named) if named and named.isdigit() else None


def _half(version: ModelVersion, role: Role) -> PairHalf:
    return PairHalf(
        role=role,
        version=int(version.version),
        uri=cast(str, version.source),
        weights_digest=_tag(version, "weights_digest"),
        base_model=_tag(version, "base_model"),
    )


def _tag(version: ModelVersion, name: str) -> str | None:
    return cast("Mapping[str, str]", version.tags).get(name)
