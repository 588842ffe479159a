"""The series that alerts and dashboards use, and no others."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from irlops.contracts.operator import OPERATOR_SERIES
from irlops.contracts.pipeline_status import Phase, PipelineStatus

BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30)


class OperatorMetrics:
    """One registry of its own, so that tests and restarts never meet another's series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.is_leader = Gauge(*self._named("irlops_operator_is_leader"), registry=self.registry)
        self.registry_up = Gauge(*self._named("irlops_operator_registry_up"), registry=self.registry)
        self._pipelines = Gauge(*self._named("irlops_operator_pipelines"), ["phase"], registry=self.registry)
        self._seconds = Histogram(
            *self._named("irlops_operator_reconcile_seconds"), buckets=BUCKETS, registry=self.registry
        )
        self._errors = Counter(
            *self._named("irlops_operator_reconcile_errors_total"), ["reason"], registry=self.registry
        )
        self._writes = Counter(*self._named("irlops_operator_api_writes_total"), ["kind"], registry=self.registry)
        self._runs = Counter(*self._named("irlops_operator_runs_total"), ["outcome"], registry=self.registry)
        self._rollbacks = Counter(*self._named("irlops_operator_rollbacks_total"), registry=self.registry)
        self._retries = Counter(*self._named("irlops_operator_job_retries_total"), registry=self.registry)

    @staticmethod
    def _named(name: str) -> tuple[str, str]:
        return name, OPERATOR_SERIES[name]

    def wrote(self, kind: str) -> None:
        """A write to the Kubernetes API, whether it worked or not."""
        self._writes.labels(kind).inc()

    def error(self, reason: str) -> None:
        """A look that ended with an error."""
        self._errors.labels(reason).inc()

    def pipelines(self, phases: Iterable[str]) -> None:
        """How many pipelines are in each phase."""
        counts = Count(phases)
        for phase in get_args(Phase):
            self._pipelines.labels(phase).set(counts.get(phase, 0))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """One look."""
        began = perf_counter()
        try:
            yield
        finally:
            self._seconds.observe(perf_counter() - began)

    def decided(self, before: PipelineStatus, after: Mapping[str, Any]) -> None:
        """Count what a written status tells of: finished runs, roll-backs, new attempts."""
        following = PipelineStatus.model_validate(after)
        known = {(entry.run, entry.generation, entry.outcome) for entry in before.history}
        for entry in following.history:
            if (entry.run, entry.generation, entry.outcome) not in known:
                self._runs.labels(entry.outcome).inc()
                if entry.outcome == "RolledBack":
                    self._rollbacks.inc()
        run = following.run
        if run is not None and run.attempts > 1 and (before.run is None or before.run.job_name != run.job_name):
            self._retries.inc()
