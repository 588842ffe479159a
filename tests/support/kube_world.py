"""Everybody that the operator works with, played: the training operator and its pods, KServe, the gateway, MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from irlops.cluster.api import KubernetesApi
from irlops.contracts.operator import FIELD_MANAGER, PAIR_CONFIG_KEY, OperatorSettings
from irlops.contracts.pair import EvaluationSummary
from irlops.contracts.pipeline_status import PairVersions
from irlops.errors import PairError, UnavailableError
from irlops.operator.metrics import OperatorMetrics
from irlops.operator.observed import GatewayAnswer, MoveAlias, RegisteredPair
from irlops.operator.observing import Eyes
from irlops.operator.reconciler import Reconciler
from irlops.operator.registry import Registry
from support.kube_api import KubeApi

Body = dict[str, Any]
START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)

SETTINGS = OperatorSettings.model_validate(
    {
        "namespace": "team-a",
        "release": "irlops",
        "identity": "operator-0",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "gateway_url": "http://gateway",
        "gateway_pair_config_map": "irlops-gateway-pair",
        "policy_runtime": "irlops-policy-cpu",
        "critic_runtime": "irlops-critic-cpu",
        "critic_protocol": "v2",
        "job_image": "localhost/irlops-jobs:0.1.0",
        "job_service_account": "irlops-job",
        "job_credentials_secret": "irlops-mlflow-auth",
        "serving_service_account": "irlops-serving",
    }
)


def pipeline(name: str = "tiny", **changes: Any) -> Body:
    """A pipeline of two stages that serves what passes ``critic.auroc >= 0.6``."""
    spec: Body = {
        "data": {"name": "arithmetic"},
        "stages": [
            {"name": "sft", "kind": "sft", "settings": {"num_steps": 3, "optimizer": {"learning_rate": 0.001}}},
            {"name": "airl", "kind": "airl", "settings": {"num_rounds": 2}},
        ],
        "jobTemplate": {"stateVolume": {"size": "1Gi"}},
        "gates": [{"metric": "critic.auroc", "minimum": 0.6}],
        "serving": {"rollout": {"timeoutSeconds": 600, "healthCheckSeconds": 10}},
    }
    return {
        "apiVersion": "irlops.dev/v1alpha1",
        "kind": "ReasoningPipeline",
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": spec | changes,
    }


class MemoryRegistry:
    """Pairs, an alias and outages."""

    def __init__(self) -> None:
        self.pairs: dict[int, RegisteredPair] = {}
        self.alias: dict[str, int] = {}
        self.moves: list[tuple[str, int, bool]] = []
        self.is_down = False

    def register(self, run_name: str, **changes: Any) -> RegisteredPair:
        version = len(self.pairs) + 1
        uri = f"pvc://tiny-state/{run_name}"
        metrics = {"critic.auroc": 0.8, "pass_at_k.1": 0.5}
        pair = RegisteredPair(version, version, f"{uri}/policy", f"{uri}/critic", "sha256:a", "sha256:a", run_name)
        defaults = {"evaluation": EvaluationSummary(dataset="arithmetic", metrics=metrics)}
        pair = replace(pair, **(defaults | changes))
        self.pairs[version] = pair
        return pair

    def aliases(self) -> Mapping[str, int]:
        self._answer()
        return dict(self.alias)

    def pair(self, policy_version: int) -> RegisteredPair:
        self._answer()
        if policy_version not in self.pairs:
            raise PairError(f"There is no pair v{policy_version}.")
        return self.pairs[policy_version]

    def remembered(self, policy_version: int) -> RegisteredPair | None:
        return self.pairs.get(policy_version)

    def pair_of_run(self, run_name: str) -> RegisteredPair | None:
        self._answer()
        return next((pair for pair in reversed(self.pairs.values()) if pair.run_name == run_name), None)

    def move_alias(self, alias: str, policy_version: int, *, is_return: bool) -> None:
        self._answer()
        if self.alias.get(alias) != policy_version:
            self.moves.append((alias, policy_version, is_return))
        self.alias[alias] = policy_version

    def _answer(self) -> None:
        if self.is_down:
            raise UnavailableError("MLflow at http://mlflow:5000 does not answer (refused)")


class World:
    """One cluster with one operator, which can be killed and started again; time passes only in ``run``."""

    def __init__(self, **changes: Any) -> None:
        self.settings = SETTINGS.model_copy(update=changes)
        self.api, self.registry, self.now = KubeApi(self.settings.namespace), MemoryRegistry(), START
        self.evaluation: Mapping[str, Any] = {}
        self.unready: set[str] = set()
        """Names of InferenceServices that never become ready."""
        self.job_ends: dict[str, Body] = {}
        """Stage -> the container's end, instead of success."""
        self.gateway_is_up = True
        self.looks = 0
        self.api.put(pair_config_map())
        self.start_operator()

    def start_operator(self) -> None:
        """A new process: nothing of the one before is left."""

        async def call(function: Any, *arguments: Any) -> Any:
            return function(*arguments)

        async def move(registry: Registry, action: MoveAlias) -> None:
            registry.move_alias(action.alias, int(action.policy_version), is_return=action.is_return)

        api = KubernetesApi(self.api, self.settings.namespace, field_manager=FIELD_MANAGER)
        self.operator = Reconciler(
            api,
            Eyes(api, self.registry, self, self.settings, call),
            self.registry,
            self.settings,
            OperatorMetrics(),
            owner=lambda: "tiny",
            now=lambda: self.now,
            move=move,
        )

    async def answer(self) -> GatewayAnswer:
        """The gateway: it answers with what the ConfigMap says once that pair's servers are ready."""
        if not self.gateway_is_up:
            return GatewayAnswer(detail="refused")
        config = yaml.safe_load(self.api.objects["ConfigMap", "irlops-gateway-pair"]["data"][PAIR_CONFIG_KEY])["pair"]
        versions = PairVersions(policy_version=config["policy_version"], critic_version=config["critic_version"])
        return GatewayAnswer(is_ready=True, pair=versions)

    async def look(self, name: str = "tiny") -> float | None:
        self.looks += 1
        return await self.operator.look(name)

    async def run(self, name: str = "tiny", *, steps: int = 60, until: str | None = None) -> Body:
        """Looks, lets everybody act and time pass, until nothing changes any more; the status then."""
        still = 0
        for _ in range(steps):
            before = self.api.version
            delay_s = await self.look(name)
            self.others_act()
            self.now += timedelta(seconds=min(delay_s or 300, 300))
            status = self.status(name)
            if until is not None and status.get("phase") == until:
                return status
            still = still + 1 if before == self.api.version else 0
            if still and (delay_s is None or (delay_s >= 60 and still > 2)):
                return status
        raise AssertionError(f"{name} never came to rest: {self.status(name)}")

    def status(self, name: str = "tiny") -> Body:
        return self.api.objects["ReasoningPipeline", name].get("status", {})

    def reason(self, name: str = "tiny", kind: str = "Ready") -> str:
        return next((one["reason"] for one in self.status(name)["conditions"] if one["type"] == kind), "")

    def message(self, name: str = "tiny", kind: str = "Ready") -> str:
        return next(one["message"] for one in self.status(name)["conditions"] if one["type"] == kind)

    def others_act(self) -> None:
        """The training operator, the pods and KServe each do one thing."""
        for name, job in self.api.of_kind("PyTorchJob").items():
            if not job["spec"]["runPolicy"].get("suspend"):
                self._play_job(name, job)
        for name, body in self.api.of_kind("InferenceService").items():
            if "deletionTimestamp" in body["metadata"]:
                self.api.remove("InferenceService", name)
                continue
            if "finalizers" not in body["metadata"]:
                self.api.put(body | {"metadata": body["metadata"] | {"finalizers": ["inferenceservice.finalizers"]}})
            ready = "False" if name in self.unready else "True"
            condition = {"type": "Ready", "status": ready, "reason": "Loading", "message": "no GPU is free"}
            self.api.set_status("InferenceService", name, {"conditions": [condition]})

    def _play_job(self, name: str, job: Body) -> None:
        seen = {one["type"] for one in job.get("status", {}).get("conditions", [])}
        stage, at = job["metadata"]["labels"]["irlops.dev/stage"], self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
        if seen & {"Succeeded", "Failed"}:
            return
        following = "Running" if not seen else "Failed" if stage in self.job_ends else "Succeeded"
        if following == "Failed":
            self.api.put(failed_pod(name, self.job_ends[stage]))
        if following == "Succeeded" and stage == "registration":
            self._register(job)
        conditions = [{"type": following, "status": "True", "lastTransitionTime": at, "message": f"{name} {following}"}]
        self.api.set_status("PyTorchJob", name, {"conditions": conditions})

    def _register(self, job: Body) -> None:
        """The registration's program; asked twice, it registers once."""
        command = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]
        run = next(part.removeprefix("--run=") for part in command if part.startswith("--run="))
        if all(pair.run_name != run for pair in self.registry.pairs.values()):
            self.registry.register(run, **self.evaluation)


def failed_pod(job: str, end: Body) -> Body:
    """A pod of ``job`` whose container ended so: {"exitCode": 2, "message": "..."}."""
    status = {"containerStatuses": [{"name": "pytorch", "state": {"terminated": end}}]}
    labels = {"training.kubeflow.org/job-name": job}
    metadata = {"name": f"{job}-worker-0", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


def pair_config_map() -> Body:
    """As the chart makes it: no pair yet."""
    section = {
        "policy": {"url": "http://irlops-policy-predictor"},
        "policy_version": "unversioned",
        "critic_version": "-",
    }
    data = {PAIR_CONFIG_KEY: yaml.safe_dump({"pair": section})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "irlops-gateway-pair"}, "data": data}
