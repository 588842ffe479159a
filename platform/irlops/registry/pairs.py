"""The registry of pairs: what may be served, which pair is champion, and what was before.

registry = PairRegistry("http://127.0.0.1:5000")
pair = registry.register(Path("out/airl/policy"), Path("out/airl/critic"), evaluation=body, lineage=lineage)
registry.promote(f"v{pair.policy.version}", gates=[Gate(metric="critic.auroc", minimum=0.75)])
registry.resolve("champion")    -> Pair with immutable locations
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irlops.contracts.pair import (
    ALIASES,
    CRITIC_MODEL,
    POLICY_MODEL,
    Alias,
    EvaluationSummary,
    Gate,
    Pair,
    PairHalf,
    PairLineage,
    PairReference,
    failed_gates,
    parse_reference,
    summarise_evaluation,
)
from irlops.errors import PairError
from irlops.registry import aliases as alias_moves
from irlops.registry.client import explaining, is_missing, open_client
from irlops.registry.folders import ModelFolder, check_pair_folders, inspect_model_folder
from irlops.registry.records import (
    CRITIC_VERSION_TAG,
    EVALUATION_TAG,
    MODEL_NAMES,
    POLICY_VERSION_TAG,
    half_tags,
    mate_of,
    pair_from_versions,
)
from irlops.registry.run_folders import evaluation_of_run, lineage_of_run
from irlops.registry.weights import place_weights

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

REGISTRATIONS = "irlops-pairs"
"""Experiment that holds the runs of pairs registered by hand."""


class PairRegistry:
    """Pairs in one MLflow registry. Safe to use from many processes at once.

    Every method raises ``UnavailableError`` when the tracking server does not answer.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        client: MlflowClient | None = None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self.tracking_uri = tracking_uri
        self._client = client or open_client(tracking_uri)
        self._now_ms = now_ms

    def register(
        self,
        policy: Path,
        critic: Path,
        *,
        policy_uri: str | None = None,
        critic_uri: str | None = None,
        evaluation: Mapping[str, Any] | EvaluationSummary | None = None,
        lineage: PairLineage | None = None,
        gates: Sequence[Gate] = (),
        alias: Alias | None = None,
    ) -> Pair:
        """Register a policy and its critic as one pair, or neither.

        Args:
            policy: Folder to check, in Hugging Face layout; ``critic`` likewise.
            policy_uri: Where the same files lie for good, when they should be registered by URI and not copied.
            evaluation: Body of evaluation.json.
            lineage: What the pair was made from; ``run_id`` has to be a run of this server.
            gates: What the evaluation has to reach.
            alias: Given to the new pair at once, on both halves.

        Raises:
            PairError: the folders are no pair, a gate failed, or the server refused; nothing was registered then.
        """
        lineage = lineage or PairLineage()
        folders = inspect_model_folder(policy, "policy"), inspect_model_folder(critic, "critic")
        check_pair_folders(*folders)
        summary = _summary(evaluation)
        _require_gates(summary, gates, "The pair was not registered")
        with explaining("Registering the pair", self.tracking_uri):
            run_id = self._run_for(lineage)
            lineage = lineage.model_copy(update={"run_id": run_id})
            uris = (policy_uri, critic_uri)
            halves = [
                _half(folder, place_weights(self._client, self.tracking_uri, run_id, folder, uri), lineage)
                for folder, uri in zip(folders, uris, strict=True)
            ]
            pair = self._create_versions(halves, folders[0].tokenizer_digest, lineage, summary)
        return self.promote(f"v{pair.policy.version}", alias=alias) if alias else pair

    def register_run(self, run_dir: Path, **options: Any) -> Pair:
        """Register what a run left in its folder: ``policy/`` and ``critic/`` with their lineage, and its evaluation.

        Args:
            options: As for ``register``; a lineage or evaluation given here goes before what the folder says.
        """
        options.setdefault("lineage", self.known_run(lineage_of_run(run_dir)))
        options.setdefault("evaluation", evaluation_of_run(run_dir))
        return self.register(run_dir / "policy", run_dir / "critic", **options)

    def list(self) -> list[Pair]:
        """Every whole pair, newest first."""
        pairs, _ = self._read_all()
        return pairs

    def problems(self) -> list[str]:
        """What is torn: halves without the other one, and aliases whose mirror is off. Empty when all is well."""
        _, problems = self._read_all()
        with explaining("Reading the aliases", self.tracking_uri):
            torn = [alias_moves.torn_alias(self._client, alias) for alias in ALIASES]
        return problems + [f"{reason}; `irlops pairs repair` corrects it" for reason in torn if reason]

    def repair(self) -> list[str]:
        """Bring every alias of the critic back to the policy's; the aliases that had to move."""
        with explaining("Repairing the aliases", self.tracking_uri):
            return [alias for alias in ALIASES if alias_moves.settle_alias(self._client, alias)]

    def resolve(self, reference: str | PairReference) -> Pair:
        """The pair that a reference names now (grammar: ``irlops.contracts.pair``).

        Raises:
            PairError: it names nothing, or a pair of which a half is missing.
        """
        reference = parse_reference(reference) if isinstance(reference, str) else reference
        if reference.kind == "folder":
            return pair_in_folder(Path(reference.value))
        with explaining(f"Looking up the pair {reference}", self.tracking_uri):
            aliases = alias_moves.aliases_of(self._client, POLICY_MODEL)
            version = self._version_named(reference, aliases)
            policy = self._policy_version(version, reference)
            return pair_from_versions(policy, self._critic_of(policy), aliases)

    def promote(self, reference: str, *, alias: Alias = "champion", gates: Sequence[Gate] = ()) -> Pair:
        """Give ``alias`` to both halves of a pair, or to neither.

        Raises:
            PairError: a gate fails, or the reference names no whole registered pair; the alias stays where it was.
        """
        pair = self.resolve(reference)
        if not pair.is_registered:
            raise PairError(
                f"{reference} is not registered, so it can't be promoted. First: irlops pairs register {reference}"
            )
        _require_gates(pair.evaluation, gates, f"{pair.label} was not promoted")
        _require_weights(pair)
        with explaining(f"Promoting {pair.label} to {alias}", self.tracking_uri):
            held = alias_moves.aliases_of(self._client, POLICY_MODEL)
            alias_moves.move_alias(self._client, alias, pair)
            version = pair.policy.version or 0
            if alias == "champion" and held.get("champion") != version:
                alias_moves.record_promotion(self._client, version, self._now_ms(), held.get("champion"))
            if alias == "champion" and held.get("challenger") == version:
                alias_moves.remove_alias(self._client, "challenger")
        return self.resolve(f"v{version}")

    def rollback(self) -> Pair:
        """Make the pair champion that was champion before, and note that the present one was taken back.

        Raises:
            PairError: there is no champion, none was before it, or that one is not whole any more.
        """
        with explaining("Rolling back", self.tracking_uri):
            current = alias_moves.aliases_of(self._client, POLICY_MODEL).get("champion")
            promotions = alias_moves.promotions_in(self._search(POLICY_MODEL))
        if current is None:
            raise PairError(
                "No pair is champion, so there is nothing to roll back. Promote one: irlops pairs promote REF"
            )
        before, taken_back = alias_moves.champion_before(promotions, current)
        if before is None:
            raise PairError(
                f"No pair was champion before v{current}. Promote another one by name: irlops pairs list, then "
                "irlops pairs promote REF"
            )
        target = self.resolve(f"v{before}")
        _require_weights(target)
        with explaining(f"Rolling back to {target.label}", self.tracking_uri):
            alias_moves.move_alias(self._client, "champion", target)
            if taken_back is not None:
                alias_moves.record_rollback(self._client, taken_back)
        return self.resolve("champion")

    def promotions(self) -> list[alias_moves.Promotion]:
        """Every time a pair became champion, oldest first."""
        with explaining("Reading the history", self.tracking_uri):
            return alias_moves.promotions_in(self._search(POLICY_MODEL))

    def record_evaluation(self, reference: str, evaluation: Mapping[str, Any]) -> Pair:
        """Put an evaluation made after registration on both halves."""
        pair, summary = self.resolve(reference), summarise_evaluation(evaluation)
        with explaining(f"Recording the evaluation of {pair.label}", self.tracking_uri):
            for half in (pair.critic, pair.policy):
                self._client.set_model_version_tag(
                    MODEL_NAMES[half.role], str(half.version), EVALUATION_TAG, summary.model_dump_json()
                )
        return pair.model_copy(update={"evaluation": summary})

    def _create_versions(
        self, halves: Sequence[PairHalf], digest: str, lineage: PairLineage, summary: EvaluationSummary | None
    ) -> Pair:
        """Both versions, each naming the other; the policy's tag that names the critic is the last write."""
        client, created = self._client, list[tuple[str, str]]()
        try:
            for half in halves:
                name = MODEL_NAMES[half.role]
                self._ensure_model(name)
                tags = half_tags(half, digest, lineage, summary)
                version = client.create_model_version(name, half.uri, lineage.run_id, tags, await_creation_for=0)
                created.append((name, str(version.version)))
            (_, policy_version), (_, critic_version) = created
            client.set_model_version_tag(CRITIC_MODEL, critic_version, POLICY_VERSION_TAG, policy_version)
            client.set_model_version_tag(CRITIC_MODEL, critic_version, CRITIC_VERSION_TAG, critic_version)
            client.set_model_version_tag(POLICY_MODEL, policy_version, POLICY_VERSION_TAG, policy_version)
            client.set_model_version_tag(POLICY_MODEL, policy_version, CRITIC_VERSION_TAG, critic_version)
        except Exception:
            self._remove_versions(created)
            raise
        return self.resolve(f"v{policy_version}")

    def _remove_versions(self, created: Sequence[tuple[str, str]]) -> None:
        for name, version in created:
            try:
                self._client.delete_model_version(name, version)
            except Exception as error:
                _log.warning("Half a pair stays behind as %s v%s (%s); it is never resolved.", name, version, error)

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise

    def _run_for(self, lineage: PairLineage) -> str:
        """The run that trained the pair, or a new one that stands for its registration."""
        if lineage.run_id is not None:
            return self._client.get_run(lineage.run_id).info.run_id
        from irlops.registry.tracking import ensure_experiment

        experiment_id = ensure_experiment(self._client, REGISTRATIONS, self.tracking_uri)
        run_id = self._client.create_run(experiment_id, run_name=lineage.run_name or "register").info.run_id
        self._client.set_terminated(run_id)
        return run_id

    def known_run(self, lineage: PairLineage) -> PairLineage:
        """Without its run id when the run was recorded at another server."""
        if lineage.run_id is None:
            return lineage
        with explaining("Looking up the run", self.tracking_uri):
            try:
                self._client.get_run(lineage.run_id)
            except Exception as error:
                if not is_missing(error):
                    raise
                return lineage.model_copy(update={"run_id": None})
        return lineage

    def _version_named(self, reference: PairReference, aliases: Mapping[str, int]) -> int:
        if reference.kind == "version":
            return int(reference.value)
        if reference.kind == "alias":
            if reference.value in aliases:
                return aliases[reference.value]
            if not self._search(POLICY_MODEL):
                raise PairError(
                    f"No pair is registered in {self.tracking_uri} yet. `irlops demo` makes a first one; one that you "
                    "trained: irlops pairs register FOLDER --as champion"
                )
            raise PairError(
                f"No pair is {reference.value} in {self.tracking_uri}. Promote one: irlops pairs list, then irlops "
                f"pairs promote REF{'' if reference.value == 'champion' else ' --as ' + reference.value}"
            )
        versions = [int(policy.version) for policy in self._search(POLICY_MODEL) if policy.run_id == reference.value]
        if not versions:
            raise PairError(f"Run {reference.value} registered no pair. `irlops pairs list` shows what is registered.")
        return max(versions)

    def _policy_version(self, version: int, reference: PairReference) -> ModelVersion:
        try:
            return self._client.get_model_version(POLICY_MODEL, str(version))
        except Exception as error:
            if not is_missing(error):
                raise
            raise PairError(
                f"There is no pair {reference}: {POLICY_MODEL} has no version {version}. `irlops pairs list` shows "
                "what is registered."
            ) from error

    def _critic_of(self, policy: ModelVersion) -> ModelVersion | None:
        version = mate_of(policy)
        try:
            return self._client.get_model_version(CRITIC_MODEL, str(version)) if version is not None else None
        except Exception as error:
            if is_missing(error):
                return None
            raise

    def _read_all(self) -> tuple[list[Pair], list[str]]:
        with explaining("Listing the pairs", self.tracking_uri):
            policies, critics = self._search(POLICY_MODEL), {int(v.version): v for v in self._search(CRITIC_MODEL)}
            aliases = alias_moves.aliases_of(self._client, POLICY_MODEL)
        pairs, problems = list[Pair](), list[str]()
        for policy in sorted(policies, key=lambda version: -int(version.version)):
            mate = mate_of(policy)
            try:
                pairs.append(pair_from_versions(policy, critics.get(mate) if mate else None, aliases))
            except PairError as error:
                problems.append(str(error))
        return pairs, problems

    def _search(self, model: str) -> list[ModelVersion]:
        found, token = list["ModelVersion"](), None
        while True:
            page = self._client.search_model_versions(f"name='{model}'", max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def pair_in_folder(folder: Path) -> Pair:
    """The pair in ``folder/policy`` and ``folder/critic``, which nobody registered.

    Raises:
        PairError: a half is missing, unsafe or of another tokenizer.
    """
    halves = inspect_model_folder(folder / "policy", "policy"), inspect_model_folder(folder / "critic", "critic")
    check_pair_folders(*halves)
    policy, critic = (_half(half, str(half.path), PairLineage()) for half in halves)
    return Pair(policy=policy, critic=critic, tokenizer_digest=halves[0].tokenizer_digest)


def _half(folder: ModelFolder, uri: str, lineage: PairLineage) -> PairHalf:
    base = lineage.policy_base_model if folder.role == "policy" else lineage.critic_base_model
    return PairHalf(role=folder.role, uri=uri, weights_digest=folder.weights_digest, base_model=base)


def _summary(evaluation: Mapping[str, Any] | EvaluationSummary | None) -> EvaluationSummary | None:
    return summarise_evaluation(evaluation) if isinstance(evaluation, Mapping) else evaluation


def _require_gates(summary: EvaluationSummary | None, gates: Sequence[Gate], refusal: str) -> None:
    if reasons := failed_gates(summary, gates):
        raise PairError(f"{refusal}: {'; '.join(reasons)}. Train or evaluate it again, or change the gate.")


def _require_weights(pair: Pair) -> None:
    """A pair whose local files were deleted would take the service down when it is promoted."""
    for half in (pair.policy, pair.critic):
        if half.local_path is not None and half.local_path.parent.exists() and not half.local_path.exists():
            raise PairError(f"The {half.role} of {pair.label} is gone from {half.local_path}. Register the pair again.")
