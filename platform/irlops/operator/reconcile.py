"""What to do about one pipeline: ``reconcile(observed) -> Decision``. Pure: the same look gives the same decision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from irlops.contracts.operator import OperatorSettings
from irlops.contracts.pair import failed_gates
from irlops.contracts.pipeline import MAX_HISTORY, PipelineSpec, parse_pipeline_spec
from irlops.contracts.pipeline_status import Condition, GateStatus, HistoryEntry, PairVersions, Phase, PipelineStatus
from irlops.errors import ManifestError
from irlops.operator.conditions import READY, REGISTRY, SERVING, condition, find, replaced, written
from irlops.operator.names import run_id, versions_label
from irlops.operator.observed import Action, Decision, MoveAlias, Observed, RegisteredPair, Tell
from irlops.operator.rollout import Rollout, deletions, roll_out
from irlops.operator.training import Progress, advance, decision_on

MAX_ENTRY_MESSAGE = 1000


@dataclass(frozen=True)
class Verdict:
    """What became of the run, as far as it is known."""

    phase: Phase
    reason: str
    message: str
    is_good: bool = False
    entry: HistoryEntry | None = None
    """To be put into the history."""
    gates: tuple[GateStatus, ...] | None = None
    actions: tuple[Action, ...] = ()
    look_again_s: float | None = None
    progress: Progress | None = None


def read_status(pipeline: Any) -> PipelineStatus:
    """The status as it was written; one that somebody else broke counts as none."""
    try:
        return PipelineStatus.model_validate(pipeline.get("status") or {})
    except ValidationError:
        return PipelineStatus()


def reconcile(o: Observed, settings: OperatorSettings) -> Decision:
    """The next actions for the pipeline and the status that tells of them."""
    status = read_status(o.pipeline)
    generation: int = o.pipeline["metadata"].get("generation", 1)
    try:
        spec = parse_pipeline_spec(o.pipeline.get("spec"), origin=o.pipeline["metadata"]["name"])
    except ManifestError as error:
        said = condition(status, READY, False, "SpecInvalid", str(error), now=o.now, generation=generation)
        kept = status.model_copy(
            update={
                "observed_generation": generation,
                "phase": "Failed",
                "message": str(error),
                "conditions": replaced(status.conditions, said),
            }
        )
        return Decision((), dumped(kept), None)
    verdict = judge(o, spec, status, settings)
    rollout = _rollout(o, spec, status, settings)
    return _decide(o, spec, status, verdict, rollout)


def judge(o: Observed, spec: PipelineSpec, status: PipelineStatus, settings: OperatorSettings) -> Verdict:
    """How far the run is, and when all its jobs are done, what its pair is good for."""
    run, generation = run_id(o.pipeline, spec), o.pipeline["metadata"].get("generation", 1)
    if decided := decision_on(status, run, generation):
        return _decided(decided, status)
    if any(entry.run == run and entry.pair is not None for entry in status.history):
        return _judge_pair(o, spec, run, settings)  # its jobs are long done, and may be gone
    progress = advance(o, spec, status, settings)
    if progress.phase is not None:
        entry = _entry(o, run, "Failed", progress.failure) if progress.failure else None
        return Verdict(
            progress.phase,
            progress.reason,
            progress.message,
            entry=entry,
            actions=progress.actions,
            look_again_s=progress.look_again_s,
            progress=progress,
        )
    return replace(_judge_pair(o, spec, run, settings), progress=progress)


_REASON_OF = {"Failed": "RunFailed"}
_PHASE_OF: dict[str, Phase] = {
    "Promoted": "Ready",
    "Registered": "Ready",
    "RolledBack": "RolledBack",
    "GateFailed": "Failed",
    "Failed": "Failed",
}


def _decided(entry: HistoryEntry, status: PipelineStatus) -> Verdict:
    """As it was said when it was decided."""
    said = find(status, READY)
    told = said is not None and said.message[:MAX_ENTRY_MESSAGE] == entry.message
    reason = said.reason if said is not None and told else _REASON_OF.get(entry.outcome, entry.outcome)
    phase = _PHASE_OF[entry.outcome]
    return Verdict(phase, reason, entry.message, is_good=phase == "Ready")


def _judge_pair(o: Observed, spec: PipelineSpec, run: str, settings: OperatorSettings) -> Verdict:
    if not o.registry.is_reachable:
        message = (
            f"The run is done, and its pair waits: MLflow does not answer ({o.registry.problem}). It is asked again."
        )
        return Verdict("Registering", "RegistryUnreachable", message, look_again_s=settings.registry_poll_s)
    pair = o.registry.run_pair
    if pair is None:
        message = (
            f"The registration of run {run} succeeded, but the registry has no pair of it. Was it deleted in MLflow, or does "
            f"the operator look at another one ({settings.tracking_uri})? Register it with `irlops pairs register`, then "
            "change the spec."
        )
        told = Tell("Warning", "PairNotFound", message)
        return Verdict("Failed", "PairNotFound", message, entry=_entry(o, run, "Failed", message), actions=(told,))
    if not _can_compare(o, spec):
        message = f"{versions_label(pair.versions)} is registered. {o.registry.alias_problem}"
        return Verdict("Gating", "AliasTorn", message, look_again_s=60)
    gates = _gate_results(o, spec, pair)
    failed = [gate.message or gate.metric for gate in gates if not gate.passed]
    if failed:
        missing = pair.evaluation is None or any(gate.value is None for gate in gates if not gate.passed)
        reason = "GateMetricMissing" if missing else "GateFailed"
        message = (
            f"{versions_label(pair.versions)} was not promoted: {'; '.join(failed)}. Change spec.gates to judge it anew, change "
            f"the stages to train another, or promote it by hand: irlops pairs promote v{pair.policy_version}"
        )
        entry = _entry(o, run, "GateFailed", message, pair.versions)
        told = Tell("Warning", reason, message)
        return Verdict("Failed", reason, message, entry=entry, gates=tuple(gates), actions=(told,))
    return _passed(o, spec, run, pair, tuple(gates))


def _can_compare(o: Observed, spec: PipelineSpec) -> bool:
    """Gates that compare with the champion need to know who it is."""
    compares = any(gate.max_drop is not None or gate.max_rise is not None for gate in spec.gates)
    return not (compares and o.registry.alias_problem)


def _passed(o: Observed, spec: PipelineSpec, run: str, pair: RegisteredPair, gates: tuple[GateStatus, ...]) -> Verdict:
    if spec.serving is None:
        message = f"{versions_label(pair.versions)} is registered. Add spec.serving to serve it."
        entry = _entry(o, run, "Registered", message, pair.versions)
        told = Tell("Normal", "Registered", message)
        return Verdict("Ready", "Registered", message, is_good=True, entry=entry, gates=gates, actions=(told,))
    alias = spec.serving.alias
    holds_it = o.registry.alias_pair is not None and o.registry.alias_pair.versions == pair.versions
    if not spec.serving.auto_promote and not holds_it:
        message = (
            f"{versions_label(pair.versions)} passed every gate and waits for a person: "
            f"irlops pairs promote v{pair.policy_version}{'' if alias == 'champion' else ' --as ' + alias}"
        )
        entry = _entry(o, run, "Registered", message, pair.versions)
        told = Tell("Normal", "AwaitingPromotion", message)
        return Verdict("Ready", "AwaitingPromotion", message, is_good=True, entry=entry, gates=gates, actions=(told,))
    message = f"{versions_label(pair.versions)} passed every gate and is {alias}."
    actions: tuple[Action, ...] = () if holds_it else (MoveAlias(alias, str(pair.policy_version)),)
    entry = _entry(o, run, "Promoted", message, pair.versions)
    told = Tell("Normal", "Promoted", message)
    return Verdict(
        "Ready", "Promoted", message, is_good=True, entry=entry, gates=gates, actions=(*actions, told), look_again_s=0.1
    )


def _gate_results(o: Observed, spec: PipelineSpec, pair: RegisteredPair) -> list[GateStatus]:
    champion = o.registry.alias_pair
    compared = (
        champion.evaluation.metrics if champion and champion.versions != pair.versions and champion.evaluation else None
    )
    results = list[GateStatus]()
    for gate in spec.gates:
        failed = failed_gates(pair.evaluation, [gate.against(compared)])
        value = pair.evaluation.metrics.get(gate.metric) if pair.evaluation else None
        why = "; ".join(failed)[:1000] or None
        results.append(GateStatus(metric=gate.metric, passed=not failed, value=value, message=why))
    return results


def _entry(o: Observed, run: str, outcome: Any, message: str | None, pair: PairVersions | None = None) -> HistoryEntry:
    return HistoryEntry(
        run=run,
        generation=o.pipeline["metadata"].get("generation", 1),
        outcome=outcome,
        message=(message or "")[:MAX_ENTRY_MESSAGE],
        pair=pair,
        finished_at=written(o.now),
    )


def _rollout(o: Observed, spec: PipelineSpec, status: PipelineStatus, settings: OperatorSettings) -> Rollout | None:
    if spec.serving is None or o.gateway_owner != o.pipeline["metadata"]["name"]:
        return None
    return roll_out(o, spec, status, settings)


def _decide(
    o: Observed, spec: PipelineSpec, status: PipelineStatus, verdict: Verdict, rollout: Rollout | None
) -> Decision:
    history = list(status.history)
    if verdict.entry is not None:
        history = _recorded(history, verdict.entry)
    if rollout is not None and rollout.outcome is not None:
        history = _recorded(history, _rollout_entry(o, history, rollout.outcome))
    phase, reason, message, is_ready = _summary(o, spec, verdict, rollout, history)
    # Nothing of a pair is left standing once the spec no longer asks for it to be served.
    actions = (*verdict.actions, *(rollout.actions if rollout else deletions(o.services)))
    waits = [wait for wait in (verdict.look_again_s, rollout.look_again_s if rollout else None) if wait is not None]
    following = status.model_copy(
        update={
            "observed_generation": o.pipeline["metadata"].get("generation", 1),
            "phase": phase,
            "message": message,
            "conditions": _conditions(o, status, rollout, is_ready, reason, message),
            "run": verdict.progress.run if verdict.progress and verdict.progress.run else status.run,
            "pairs": rollout.pairs if rollout else None,
            "gates": list(verdict.gates) if verdict.gates is not None else status.gates,
            "history": _kept(history, spec, run_id(o.pipeline, spec)),
        }
    )
    return Decision(actions, dumped(following), min(waits, default=None))


def _summary(
    o: Observed, spec: PipelineSpec, verdict: Verdict, rollout: Rollout | None, history: list[HistoryEntry]
) -> tuple[Phase, str, str, bool]:
    """One line for people. A run that isn't over or went wrong comes before what serves meanwhile."""
    if not verdict.is_good and verdict.phase != "RolledBack":
        return verdict.phase, verdict.reason, verdict.message, False
    if rollout is None:
        if spec.serving is not None and o.gateway_owner is not None and verdict.reason != "AwaitingPromotion":
            message = (
                f"{verdict.message} The pipeline {o.gateway_owner} serves through this gateway and follows the alias."
            )
            return verdict.phase, "ServedElsewhere", message, verdict.is_good
        return verdict.phase, verdict.reason, verdict.message, verdict.is_good
    if rollout.phase is not None:
        return rollout.phase, _shown_reason(rollout), rollout.message, False
    newest = history[0] if history else None
    if (
        newest is not None
        and newest.outcome == "RolledBack"
        and newest.generation == o.pipeline["metadata"]["generation"]
    ):
        return "RolledBack", "RolledBack", newest.message, False
    if verdict.reason in ("AwaitingPromotion", "Registered") and not rollout.is_serving:
        return verdict.phase, verdict.reason, verdict.message, True
    if rollout.problem is not None:
        return "Ready", *rollout.problem, False
    return "Ready", rollout.reason, rollout.message, rollout.is_serving


def _shown_reason(rollout: Rollout) -> str:
    return "RollingOut" if rollout.phase == "RollingOut" else rollout.reason


def _conditions(
    o: Observed, status: PipelineStatus, rollout: Rollout | None, is_ready: bool, reason: str, message: str
) -> list[Condition]:
    generation = o.pipeline["metadata"].get("generation", 1)

    def said(kind: str, state: bool, why: str, text: str) -> Condition:
        return condition(status, kind, state, why, text, now=o.now, generation=generation)

    conditions = [said(READY, is_ready, reason, message)]
    if rollout is not None:
        conditions += rollout.conditions
        text = (
            f"The gateway answers with {versions_label(rollout.pairs.serving)}."
            if rollout.is_serving
            else rollout.message
        )
        conditions.append(said(SERVING, rollout.is_serving, "Serving" if rollout.is_serving else rollout.reason, text))
    if not o.registry.is_reachable:
        text = f"{o.registry.problem} What serves goes on; finished runs wait. It is asked again."
        conditions.append(said(REGISTRY, False, "RegistryUnreachable", text))
    return replaced(conditions)


def _recorded(history: list[HistoryEntry], entry: HistoryEntry) -> list[HistoryEntry]:
    return [entry, *(one for one in history if one.run != entry.run)]


def _rollout_entry(o: Observed, history: list[HistoryEntry], outcome: tuple[PairVersions, str, str]) -> HistoryEntry:
    """Of the run that made the pair; a pair from elsewhere is its own entry."""
    pair, result, message = outcome
    of_run = next((one.run for one in history if one.pair == pair), f"v{pair.policy_version}")
    return _entry(o, of_run, result, message, pair)


def _kept(history: list[HistoryEntry], spec: PipelineSpec, run: str) -> list[HistoryEntry]:
    """As many as asked for, and this spec's run always: without its entry it would be trained again."""
    limit = min(max(spec.history_limit, 1), MAX_HISTORY)
    newest, older = history[:limit], history[limit:]
    mine = [entry for entry in older if entry.run == run]
    return [*newest[: limit - len(mine)], *mine]


def dumped(status: PipelineStatus) -> dict[str, Any]:
    """As it is written to the API server."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)
