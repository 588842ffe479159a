"""Training jobs on a cluster: a manifest's objects created, its job watched, its workers' lines brought here.

TrainingCluster.connect(kubeconfig, namespace).submit(manifest) -> SubmittedJob -> follow(...) -> JobState
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from irlops.cluster.connection import TIMEOUT_S, Connection, connect, explaining
from irlops.cluster.job_states import JobState, job_state
from irlops.cluster.pod_logs import OnLine, PodLogs
from irlops.cluster.trainjobs import GROUP as TRAINER_GROUP
from irlops.cluster.trainjobs import VERSION as TRAINER_VERSION
from irlops.cluster.trainjobs import as_trainjob
from irlops.contracts.training_manifest import TrainingManifest
from irlops.errors import MissingDependencyError, PermanentError

GROUP, VERSION, PLURAL = "kubeflow.org", "v1", "pytorchjobs"
JOB_NAME_LABEL = "training.kubeflow.org/job-name"
"""The training operator's, on every pod."""
INSTALL_TRAINER = 'kubectl apply --server-side -k "github.com/kubeflow/trainer/manifests/overlays/manager?ref=v2.3.0"'
INSTALL = 'kubectl apply --server-side -k "github.com/kubeflow/trainer/manifests/overlays/standalone?ref=v1.9.4"'


@dataclass(frozen=True)
class SubmittedJob:
    """Made by ``TrainingCluster.submit``.

    Example: ``SubmittedJob(name="airl-tiny", namespace="team-a")``
    """

    name: str
    namespace: str


class TrainingCluster:
    """The training jobs of one namespace."""

    def __init__(self, connection: Connection) -> None:
        try:
            from kubeflow.training import TrainingClient
        except ImportError as error:
            raise MissingDependencyError(
                f"kubeflow-training is not installed ({error}). Install irlops with the extra `platform`, or train with --local."
            ) from error
        self._connection = connection
        self._sdk: Any = TrainingClient(client_configuration=connection.configuration, namespace=connection.namespace)

    @classmethod
    def connect(cls, kubeconfig: Path | None, namespace: str | None) -> TrainingCluster:
        """The cluster of a kubeconfig (see ``irlops.cluster.connection.connect``).

        Raises:
            ConfigError: the kubeconfig can't be used.
            MissingDependencyError: Kubeflow's SDK is not installed.
        """
        return cls(connect(kubeconfig, namespace))

    @property
    def namespace(self) -> str:
        return self._connection.namespace

    def submit(self, manifest: TrainingManifest) -> SubmittedJob:
        """Create everything in a manifest, the job last.

        ConfigMaps and Secrets of the same name are replaced, claims are kept as they are.

        Raises:
            PermanentError: the job is there already, or the API refused something.
            UnavailableError: the API does not answer; what was created may stay, and trying again goes on from there.
        """
        name = manifest.job.metadata.name
        if (there := self.find(name)) is not None:
            raise PermanentError(
                f"{name} is already in {self.namespace} ({there.phase}). Delete it with `kubectl delete pytorchjob {name} "
                f"-n {self.namespace}` (its checkpoints stay in their claim, and the new one goes on from them), or follow it "
                f"with `irlops logs {name} --follow`."
            )
        for document in manifest.documents:
            if document["kind"] != "PyTorchJob":
                self._create_or_replace(document)
        [job] = [document for document in manifest.documents if document["kind"] == "PyTorchJob"]
        with explaining(f"create the PyTorchJob {name} in {self.namespace}", self._connection):
            self._sdk.create_job(self._as_model(_in_namespace(job, self.namespace)), namespace=self.namespace)
        return SubmittedJob(name, self.namespace)

    def submit_trainjob(self, manifest: TrainingManifest) -> SubmittedJob:
        """The same job for Kubeflow Trainer v2 (see ``irlops.cluster.trainjobs``).

        Raises:
            ManifestError: a TrainJob can't say what the manifest asks for.
            PermanentError, UnavailableError: as ``submit``.
        """
        name, documents = manifest.job.metadata.name, as_trainjob(manifest)
        if self._find_object(TRAINER_GROUP, TRAINER_VERSION, "trainjobs", name, INSTALL_TRAINER) is not None:
            raise PermanentError(
                f"{name} is already in {self.namespace}. Delete it with `kubectl delete trainjob {name} -n {self.namespace}`; "
                "its checkpoints stay in their claim, and the new one goes on from them."
            )
        *mounted, runtime, job = documents
        for document in mounted:
            self._create_or_replace(document)
        self._apply_runtime(_in_namespace(runtime, self.namespace))
        with explaining(f"create the TrainJob {name} in {self.namespace}", self._connection):
            self._sdk.custom_api.create_namespaced_custom_object(
                TRAINER_GROUP, TRAINER_VERSION, self.namespace, "trainjobs", _in_namespace(job, self.namespace)
            )
        return SubmittedJob(name, self.namespace)

    def _apply_runtime(self, runtime: dict[str, Any]) -> None:
        place = (TRAINER_GROUP, TRAINER_VERSION, self.namespace, "trainingruntimes")
        name, api = runtime["metadata"]["name"], self._sdk.custom_api
        there = self._find_object(TRAINER_GROUP, TRAINER_VERSION, "trainingruntimes", name, INSTALL_TRAINER)
        with explaining(f"create the TrainingRuntime {name} in {self.namespace}", self._connection):
            if there is None:
                api.create_namespaced_custom_object(*place, runtime)
            else:  # the API takes a whole custom resource only for the version that was read
                version = there["metadata"].get("resourceVersion")
                metadata = {**runtime["metadata"], **({"resourceVersion": version} if version else {})}
                api.replace_namespaced_custom_object(*place, name, {**runtime, "metadata": metadata})

    def _as_model(self, job: Mapping[str, Any]) -> Any:
        return self._sdk.api_client.deserialize(SimpleNamespace(data=json.dumps(job)), "KubeflowOrgV1PyTorchJob")

    def _create_or_replace(self, document: Mapping[str, Any]) -> None:
        from kubernetes.client.exceptions import ApiException

        kind = document["kind"]
        name, core, body = document["metadata"]["name"], self._sdk.core_api, _in_namespace(document, self.namespace)
        word = {
            "ConfigMap": "config_map",
            "Secret": "secret",
            "PersistentVolumeClaim": "persistent_volume_claim",
        }[kind]
        with explaining(f"create the {kind} {name} in {self.namespace}", self._connection):
            try:
                getattr(core, f"create_namespaced_{word}")(self.namespace, body, _request_timeout=TIMEOUT_S)
            except ApiException as error:
                if error.status != 409:
                    raise
                if kind != "PersistentVolumeClaim":
                    replace: Any = getattr(core, f"replace_namespaced_{word}")
                    replace(name, self.namespace, body, _request_timeout=TIMEOUT_S)

    def find(self, name: str) -> JobState | None:
        """The job's state; None when there is no such job.

        Raises:
            PermanentError: PyTorchJobs are not installed, or may not be read.
            UnavailableError: the API does not answer.
        """
        # Not the SDK's get_job: it can't read a job without runPolicy, nor find out why there is none.
        found = self._find_object(GROUP, VERSION, PLURAL, name, INSTALL)
        return None if found is None else job_state(found)

    def _find_object(self, group: str, version: str, plural: str, name: str, install: str) -> Mapping[str, Any] | None:
        from kubernetes.client.exceptions import ApiException

        with explaining(f"read {plural}/{name} in {self.namespace}", self._connection):
            try:
                return self._sdk.custom_api.get_namespaced_custom_object(
                    group, version, self.namespace, plural, name, _request_timeout=TIMEOUT_S
                )
            except ApiException as error:
                if error.status != 404:
                    raise
                if _names_the_object(error):
                    return None
                raise PermanentError(
                    f"The cluster at {self._connection.host} knows no {plural}.{group}. Install what runs them: {install}"
                ) from error

    def state(self, name: str) -> JobState:
        """The job's state.

        Raises:
            PermanentError: there is no such job; otherwise as ``find``.
        """
        state = self.find(name)
        if state is None:
            raise PermanentError(
                f"There is no PyTorchJob {name} in {self.namespace}. `irlops status` lists those there are."
            )
        return state

    def follow(
        self, name: str, *, on_line: OnLine, on_state: Callable[[JobState], None] | None = None, poll_s: float = 2.0
    ) -> JobState:
        """Pass on what all workers print until the job is over.

        Args:
            on_state: Gets each new state.

        Returns:
            How it ended.

        Raises:
            PermanentError: there is no such job, or it was deleted meanwhile.
            UnavailableError: the API was away for minutes. The job goes on.
        """
        latest: list[JobState] = []

        def is_over() -> bool:
            state = self.state(name)
            if on_state and (
                not latest or (state.phase, state.num_active) != (latest[-1].phase, latest[-1].num_active)
            ):
                on_state(state)
            latest[:] = [state]
            return state.is_over

        self.logs(name, poll_s=poll_s).follow(is_over, on_line)
        return latest[-1]

    def logs(self, name: str, *, poll_s: float = 2.0) -> PodLogs:
        """The logs of a job's pods, called worker-0 and so on."""
        return PodLogs(
            self._connection,
            f"{JOB_NAME_LABEL}={name}",
            short_name=lambda pod: pod.removeprefix(f"{name}-"),
            poll_s=poll_s,
        )


def _names_the_object(error: Any) -> bool:
    """Whether a 404 speaks of one object; of an unknown kind the API server says "page not found", and not what."""
    try:
        return bool(json.loads(error.body).get("details", {}).get("name"))
    except (TypeError, ValueError, AttributeError):
        return False


def _in_namespace(document: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """The object as it is to be created there; the API refuses one that names another namespace."""
    return {**document, "metadata": {**document["metadata"], "namespace": namespace}}
