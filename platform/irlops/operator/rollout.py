"""Moving what serves from one pair to the next, both halves together, and back when the next one isn't healthy.

    alias -> candidate -> both halves ready -> the gateway's pair section -> the gateway answers with it, for a while
                       -> not in time: the last good pair again, and the alias with it

Each decision is in the status before anything follows from it that can't be told from the cluster: that a candidate was
given up, and that it has proved itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from irlops.contracts.operator import PAIR_CONFIG_KEY, OperatorSettings
from irlops.contracts.pipeline import PipelineSpec
from irlops.contracts.pipeline_status import Condition, PairStatus, PairVersions, Phase, PipelineStatus
from irlops.errors import PairError
from irlops.operator.conditions import ROLLED_OUT, condition, find, read
from irlops.operator.names import APPLIED_ANNOTATION, service_name, versions_label
from irlops.operator.observed import Action, Apply, Body, Delete, MoveAlias, Observed, RegisteredPair, Tell
from irlops.operator.serving import (
    ROLES,
    check_servable,
    inference_service,
    is_leaving,
    is_ready,
    pair_config,
    service_versions,
    why_not_ready,
)

CONFIG_PROPAGATION_S = 180.0
"""A kubelet brings a changed ConfigMap into pods within a minute or two."""
LOOK_S = 5.0
"""Between two looks at a gateway that is about to change; nothing else tells of it."""


@dataclass(frozen=True)
class Rollout:
    """What serves, and what is on its way."""

    pairs: PairStatus
    phase: Phase | None = None
    """None: nothing is on its way."""
    is_serving: bool = False
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    """ROLLED_OUT while there is a candidate."""
    actions: tuple[Action, ...] = ()
    outcome: tuple[PairVersions, str, str] | None = None
    """(pair, Promoted or RolledBack, why) once it is decided."""
    look_again_s: float | None = None
    problem: tuple[str, str] | None = field(default=None)
    """(reason, message) of something a person has to mend, while the last good pair goes on."""


def roll_out(o: Observed, spec: PipelineSpec, status: PipelineStatus, settings: OperatorSettings) -> Rollout:
    """The next step towards serving the pair that holds the alias."""
    return _Move(o, spec, status, settings).next()


class _Move:
    def __init__(self, o: Observed, spec: PipelineSpec, status: PipelineStatus, settings: OperatorSettings) -> None:
        assert spec.serving is not None
        self.o, self.spec, self.status, self.settings = o, spec, status, settings
        self.serving = spec.serving
        pairs = status.pairs or PairStatus()
        self.good, self.candidate, self.answering = pairs.last_good, pairs.candidate, pairs.serving
        self.target = o.registry.alias_pair.versions if o.registry.alias_pair else None
        self.under_way = find(status, ROLLED_OUT)

    def next(self) -> Rollout:
        """One of: give up, hold what is there, or move on."""
        if "InferenceService" in self.o.missing_kinds:
            pairs = self.status.pairs or PairStatus()
            return Rollout(pairs, "Failed", False, "ServingUnavailable", _NO_KSERVE, look_again_s=60)
        if self.candidate is not None and self.under_way is not None and self.under_way.status == "False":
            return self._take_back()
        target = self.target if self.o.registry.is_reachable and self.target else self.candidate or self.good
        if target is None:
            return self._nothing()
        if target == self.good:
            return self._hold()
        return self._move_to(target)

    # -- nothing is moving

    def _nothing(self) -> Rollout:
        why = self.o.registry.alias_problem or f"No pair is {self.serving.alias} yet."
        return Rollout(PairStatus(), reason="NoPair", message=why)

    def _hold(self) -> Rollout:
        """The last good pair, and nothing beside it."""
        assert self.good is not None
        pair = self.o.registry.pair(self.good)
        actions = [*self._ensure(pair), *self._point_gateway_at(pair), *self._clear_except(self.good)]
        waiting = self._waiting_for(self.good)
        pairs = PairStatus(serving=self.good, last_good=self.good)
        if waiting:
            message = f"{versions_label(self.good)} is not ready: {waiting}"
            return Rollout(pairs, None, False, "PairNotReady", message, actions=tuple(actions), look_again_s=60)
        problem = ("AliasTorn", self.o.registry.alias_problem) if self.o.registry.alias_problem else None
        message = f"The gateway answers with {versions_label(self.good)}."
        return Rollout(pairs, None, True, "Serving", message, actions=tuple(actions), problem=problem)

    # -- forward

    def _move_to(self, target: PairVersions) -> Rollout:
        is_new = target != self.candidate
        pair = self.o.registry.pair(target)
        if pair is None:
            message = f"{versions_label(target)} can't be looked up: {self.o.registry.problem}. {self._meanwhile()}"
            return self._under_way(target, None, "RegistryUnreachable", message, look_again_s=30)
        try:
            check_servable(pair, self.spec)
        except PairError as error:
            return self._give_up(target, "PairRefused", str(error))
        began = self.o.now if is_new or self.under_way is None else read(self.under_way.last_transition_time)
        if not is_new and self.under_way is not None and self.under_way.status == "True":
            return self._prove(target, pair, began)
        return self._start_halves(target, pair, began)

    def _start_halves(self, target: PairVersions, pair: RegisteredPair, began: datetime) -> Rollout:
        """Until both halves are ready."""
        left_s = self.serving.rollout.timeout_seconds - (self.o.now - began).total_seconds()
        actions: list[Action] = [*self._clear_except(target, self.good)]
        if self._stops_first() and (old := self._services_of(self.good)):
            actions += deletions(old)
            message = f"The servers of {versions_label(self.good)} stop to make room for {versions_label(target)}."
            return self._under_way(target, None, "StoppingFirst", message, actions, look_again_s=LOOK_S)
        actions += self._ensure(pair)
        waiting = self._waiting_for(target)
        if not waiting:
            actions += self._point_gateway_at(pair)
            message = f"Both halves of {versions_label(target)} are ready; the gateway is sent there."
            return self._under_way(target, True, "GatewaySwitching", message, actions, look_again_s=LOOK_S)
        if left_s <= 0:
            return self._give_up(
                target, "NotReadyInTime", f"{waiting} (after {self.serving.rollout.timeout_seconds} s)"
            )
        message = f"Waiting for {versions_label(target)}: {waiting}. {self._meanwhile()}"
        return self._under_way(target, None, "WaitingForHalves", message, actions, look_again_s=left_s)

    def _prove(self, target: PairVersions, pair: RegisteredPair, switched: datetime) -> Rollout:
        """Until the gateway has answered with the pair for long enough."""
        waited_s = (self.o.now - switched).total_seconds()
        check_s = self.serving.rollout.health_check_seconds
        actions = [*self._ensure(pair), *self._point_gateway_at(pair)]
        answers = self.o.gateway.is_ready and self.o.gateway.pair == target and not self._waiting_for(target)
        if answers and waited_s >= check_s:
            return self._proved(target, actions)
        if not answers and waited_s > check_s + CONFIG_PROPAGATION_S:
            why = (
                self._waiting_for(target)
                or f"the gateway does not answer with it ({self.o.gateway.detail or 'no answer'})"
            )
            return self._give_up(target, "UnhealthyInGateway", why)
        look_s = min(LOOK_S, check_s - waited_s) if answers else LOOK_S
        serving = target if answers else self.answering
        message = (
            f"The gateway answers with {versions_label(target)}; it has to for {check_s} s."
            if answers
            else f"The gateway is sent to {versions_label(target)} and does not answer with it yet."
        )
        reason = "Proving" if answers else "GatewaySwitching"
        return self._under_way(target, True, reason, message, actions, look_again_s=max(look_s, 0.1), serving=serving)

    def _proved(self, target: PairVersions, actions: Sequence[Action]) -> Rollout:
        message = f"The gateway answers with {versions_label(target)}."
        told = Tell("Normal", "RolledOut", message)
        pairs = PairStatus(serving=target, last_good=target)
        return Rollout(
            pairs,
            None,
            True,
            "Serving",
            message,
            actions=(*actions, told),
            outcome=(target, "Promoted", message),
            look_again_s=0.1,  # the servers of the pair before are taken away once this is on record
        )

    # -- back

    def _give_up(self, target: PairVersions, reason: str, why: str) -> Rollout:
        """Only put on record here: what follows is done from the record, so that it is done exactly once."""
        if self.good is None:
            message = (
                f"{versions_label(target)} can't serve: {why}. There is no earlier pair to return to; it is used as soon as "
                "it becomes ready. Look at its pods (`kubectl get pods -l irlops.dev/pipeline`), or promote another pair."
            )
            pair = self.o.registry.pair(target)
            keep: list[Action] = []
            if pair is not None and reason != "PairRefused":
                keep = [*self._ensure(pair), *(self._point_gateway_at(pair) if reason == "UnhealthyInGateway" else [])]
            state = self.under_way is not None and self.under_way.status == "True" and target == self.candidate
            waiting = self._under_way(target, state or None, reason, message, keep, look_again_s=60)
            return _with_phase(waiting, "Failed")
        message = (
            f"{versions_label(target)} was taken back: {why.rstrip('.')}. {versions_label(self.good)} serves again."
        )
        told = Tell("Warning", reason, message)
        undone = self._under_way(target, False, reason, message, [told], look_again_s=0.1)
        return _with_phase(undone, "RolledBack", outcome=(target, "RolledBack", message))

    def _take_back(self) -> Rollout:
        """The gateway first, then the alias, then the servers nobody needs."""
        assert self.candidate is not None
        assert self.good is not None
        assert self.under_way is not None
        pair = self.o.registry.pair(self.good)
        reason, message = self.under_way.reason, self.under_way.message
        actions: list[Action] = [*self._ensure(pair), *self._point_gateway_at(pair), *self._clear_except(self.good)]
        if not self.o.registry.is_reachable:
            message += f" The alias is returned when MLflow answers ({self.o.registry.problem})."
            return _with_phase(
                self._under_way(self.candidate, False, reason, message, actions, look_again_s=30), "RolledBack"
            )
        if self.target == self.candidate:
            actions.append(MoveAlias(self.serving.alias, self.good.policy_version, is_return=True))
            return _with_phase(
                self._under_way(self.candidate, False, reason, message, actions, look_again_s=1), "RolledBack"
            )
        held = self._hold()
        return Rollout(
            held.pairs,
            "RolledBack",
            held.is_serving,
            reason,
            message,
            actions=held.actions,
            look_again_s=held.look_again_s,
        )

    # -- parts

    def _under_way(
        self,
        target: PairVersions,
        state: bool | None,
        reason: str,
        message: str,
        actions: Sequence[Action] = (),
        *,
        look_again_s: float,
        serving: PairVersions | None = None,
    ) -> Rollout:
        before = self.status
        if target != self.candidate:  # another pair's time doesn't count
            before = before.model_copy(update={"conditions": [c for c in before.conditions if c.type != ROLLED_OUT]})
        generation = self.o.pipeline["metadata"].get("generation", 1)
        said = condition(before, ROLLED_OUT, state, reason, message, now=self.o.now, generation=generation)
        still = self.good is not None and not self._waiting_for(self.good)
        shown = serving or (self.good if still or self.answering is None else self.answering)
        return Rollout(
            PairStatus(serving=shown, candidate=target, last_good=self.good),
            "RollingOut",
            still or serving is not None,
            reason,
            message,
            conditions=(said,),
            actions=tuple(actions),
            look_again_s=look_again_s,
        )

    def _ensure(self, pair: RegisteredPair | None) -> list[Action]:
        """Both halves as rendered now; those that carry the digest already are left alone."""
        if pair is None:
            return []
        wanted = [inference_service(self.o.pipeline, self.spec, pair, role, self.settings) for role in ROLES]
        there = {each["metadata"]["name"]: each for each in self.o.services}
        # What is leaving can't be kept by writing to it: it is made anew once it is gone.
        leaving = {name for name, each in there.items() if is_leaving(each)}
        free = [each for each in wanted if each["metadata"]["name"] not in leaving]
        return [Apply(each) for each in free if _digest(there.get(each["metadata"]["name"])) != _digest(each)]

    def _point_gateway_at(self, pair: RegisteredPair | None) -> list[Action]:
        if pair is None:
            return []
        wanted = pair_config(self.o.pipeline, pair, self.settings)
        found = (self.o.pair_config or {}).get("data", {}).get(PAIR_CONFIG_KEY)
        return [] if found == wanted["data"][PAIR_CONFIG_KEY] else [Apply(wanted)]

    def _services_of(self, versions: PairVersions | None) -> list[Body]:
        return [each for each in self.o.services if versions is not None and service_versions(each) == versions]

    def _clear_except(self, *kept: PairVersions | None) -> list[Action]:
        return deletions([each for each in self.o.services if service_versions(each) not in kept])

    def _stops_first(self) -> bool:
        return self.serving.rollout.strategy == "InPlace" and self.good is not None

    def _waiting_for(self, versions: PairVersions) -> str:
        """Which half isn't ready and why; empty when both are."""
        name = self.o.pipeline["metadata"]["name"]
        there = {each["metadata"]["name"]: each for each in self.o.services}
        halves = {"policy": versions.policy_version, "critic": versions.critic_version}
        reasons = list[str]()
        for role, version in halves.items():
            service = there.get(service_name(name, role, version, namespace=self.settings.namespace))
            if service is None:
                reasons.append(f"the {role}'s InferenceService isn't there yet")
            elif is_leaving(service):
                reasons.append(f"the {role}'s earlier InferenceService is still being deleted")
            elif not is_ready(service):
                reasons.append(f"the {role} isn't ready ({why_not_ready(service)})")
        return "; ".join(reasons)

    def _meanwhile(self) -> str:
        if self.good is None:
            return "Nothing serves until then."
        if self._stops_first():
            return f"{versions_label(self.good)} returns if it doesn't."
        return f"{versions_label(self.good)} goes on serving."


_NO_KSERVE = (
    "This cluster has no InferenceServices, so nothing can be served. Install KServe 0.20 or newer "
    "(docs/guides/install-on-kind.md, step 2), or remove spec.serving. It is looked for again every minute."
)


def deletions(services: Sequence[Body]) -> list[Action]:
    """What takes these InferenceServices away; those on their way out are not asked again."""
    return [Delete("InferenceService", each["metadata"]["name"]) for each in services if not is_leaving(each)]


def _digest(service: Body | None) -> str | None:
    return service["metadata"].get("annotations", {}).get(APPLIED_ANNOTATION) if service else None


def _with_phase(rollout: Rollout, phase: Phase, outcome: tuple[PairVersions, str, str] | None = None) -> Rollout:
    return replace(rollout, phase=phase, outcome=outcome)
