"""Everything that ``reconcile`` looks at and everything that it may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from irlops.contracts.pair import Alias, EvaluationSummary
from irlops.contracts.pipeline_status import PairVersions

Body = Mapping[str, Any]


@dataclass(frozen=True)
class RegisteredPair:
    """A whole pair in the registry.

    Made by the registry port; consumed by gates and roll-outs.
    Example: ``RegisteredPair(7, 7, "pvc://tiny-state/tiny-4f2a1-airl/policy", "pvc://...critic", "sha256:41", "sha256:41")``
    """

    policy_version: int
    critic_version: int
    policy_uri: str
    critic_uri: str
    policy_tokenizer: str
    critic_tokenizer: str
    run_name: str | None = None
    evaluation: EvaluationSummary | None = None
    calibration: Mapping[str, Any] | None = None
    """The critic's calibration.json, as the registration left it."""

    @property
    def versions(self) -> PairVersions:
        return PairVersions(policy_version=str(self.policy_version), critic_version=str(self.critic_version))


@dataclass(frozen=True)
class RegistryView:
    """What MLflow says, as far as this pipeline is concerned."""

    is_reachable: bool = True
    problem: str = ""
    """Why it isn't reachable."""
    alias_pair: RegisteredPair | None = None
    """Who holds the alias that the pipeline follows."""
    alias_problem: str = ""
    """The alias names something that is no whole pair."""
    run_pair: RegisteredPair | None = None
    """What this pipeline's run registered."""
    pairs: Mapping[str, RegisteredPair] = field(default_factory=dict)
    """Further pairs that the status names, by policy version."""

    def pair(self, versions: PairVersions | None) -> RegisteredPair | None:
        """The pair of these versions, if it was looked up."""
        known = [self.alias_pair, self.run_pair, *self.pairs.values()]
        return next((one for one in known if one is not None and one.versions == versions), None)


@dataclass(frozen=True)
class GatewayAnswer:
    """What the gateway's /readyz said."""

    is_ready: bool = False
    pair: PairVersions | None = None
    detail: str = ""


@dataclass(frozen=True)
class Observed:
    """One look at one pipeline and what belongs to it. Absent things are empty, never stale."""

    pipeline: Body
    now: datetime
    jobs: Sequence[Body] = ()
    """Its PyTorchJobs."""
    pods: Sequence[Body] = ()
    """Of the newest failed job."""
    services: Sequence[Body] = ()
    """Its InferenceServices."""
    missing_claims: Sequence[str] = ()
    """Claims that the spec names and nobody made."""
    missing_kinds: Sequence[str] = ()
    """Kinds that this cluster doesn't know."""
    registry: RegistryView = RegistryView()
    pair_config: Body | None = None
    """The gateway's pair ConfigMap."""
    gateway: GatewayAnswer = GatewayAnswer()
    gateway_owner: str | None = None
    """Name of the one pipeline that serves through the gateway."""


@dataclass(frozen=True)
class Apply:
    """Make an object so."""

    body: Body


@dataclass(frozen=True)
class Merge:
    """Change single fields of an object."""

    kind: str
    name: str
    patch: Body


@dataclass(frozen=True)
class Delete:
    """Take an object away."""

    kind: str
    name: str


@dataclass(frozen=True)
class MoveAlias:
    """Put the alias on both halves of a pair."""

    alias: Alias
    policy_version: str
    is_return: bool = False
    """The promotion before it is taken back."""


@dataclass(frozen=True)
class Tell:
    """An Event for people."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Action = Apply | Merge | Delete | MoveAlias | Tell


@dataclass(frozen=True)
class Decision:
    """What to do, in this order, what to write into the status then, and when to look again at the latest."""

    actions: tuple[Action, ...]
    status: Body
    look_again_s: float | None
    """None: at the next resync."""
