"""The objects that a served pair asks for: two InferenceServices and the gateway's pair section. No I/O.

Every pair has InferenceServices of its own, called after its versions: two pairs never share an address, so a gateway
can't mix their halves, and going back is naming the old address again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from irlops.contracts.operator import (
    CRITIC_VERSION_LABEL,
    PAIR_CONFIG_KEY,
    PIPELINE_LABEL,
    POLICY_VERSION_LABEL,
    RELEASE_LABEL,
    ROLE_LABEL,
    OperatorSettings,
)
from irlops.contracts.pipeline import Autoscaling, HalfTemplate, PipelineSpec
from irlops.contracts.pipeline_status import PairVersions
from irlops.errors import PairError
from irlops.operator.jobs import merged, owner_reference
from irlops.operator.names import APPLIED_ANNOTATION, digest_of, service_name
from irlops.operator.observed import RegisteredPair
from irlops.registry.weights import URI_SCHEMES

Body = dict[str, Any]
Role = Literal["policy", "critic"]
ROLES: tuple[Role, ...] = ("policy", "critic")


def storage_uri(pair: RegisteredPair, role: Role, half: HalfTemplate) -> str:
    """Where KServe loads a half from: never an alias or ``models:/``, which the pod would have to resolve.

    Raises:
        PairError: KServe can't read from there.
    """
    version = pair.policy_version if role == "policy" else pair.critic_version
    if half.storage_uri is not None:
        uri = half.storage_uri.replace("{version}", str(version))
    else:
        uri = pair.policy_uri if role == "policy" else pair.critic_uri
    if urlsplit(uri).scheme not in URI_SCHEMES:
        raise PairError(
            f"The {role} v{version} lies at {uri}, which KServe can't read ({', '.join(sorted(URI_SCHEMES))} it can). "
            f"Set spec.serving.{role}.storageUri to where the same files lie for the cluster, with {{version}} for the "
            "version, or register the pair by such a URI."
        )
    return uri


def check_servable(pair: RegisteredPair, spec: PipelineSpec) -> None:
    """Whether both halves belong together and can be loaded.

    Raises:
        PairError: the tokenizers differ, or KServe can't read a location.
    """
    if pair.policy_tokenizer != pair.critic_tokenizer:
        raise PairError(
            f"Policy v{pair.policy_version} and critic v{pair.critic_version} use different tokenizers "
            f"({pair.policy_tokenizer[:19]} and {pair.critic_tokenizer[:19]}). Promote a pair that one run registered."
        )
    assert spec.serving is not None
    for role in ROLES:
        storage_uri(pair, role, getattr(spec.serving, role))


def inference_service(
    pipeline: Mapping[str, Any], spec: PipelineSpec, pair: RegisteredPair, role: Role, settings: OperatorSettings
) -> Body:
    """One half of ``pair``, in Standard mode, reached inside the cluster only."""
    assert spec.serving is not None
    half: HalfTemplate = getattr(spec.serving, role)
    name = pipeline["metadata"]["name"]
    version = pair.policy_version if role == "policy" else pair.critic_version
    labels = {
        "app.kubernetes.io/part-of": "irlops",
        "app.kubernetes.io/managed-by": "irlops-operator",
        RELEASE_LABEL: settings.release,
        ROLE_LABEL: role,
        PIPELINE_LABEL: name,
        POLICY_VERSION_LABEL: str(pair.policy_version),
        CRITIC_VERSION_LABEL: str(pair.critic_version),
    }
    body: Body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(name, role, version, namespace=settings.namespace),
            "labels": labels | {"networking.kserve.io/visibility": "cluster-local"},
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": half.autoscaling.class_,
            },
            "ownerReferences": [owner_reference(pipeline)],
        },
        "spec": {"predictor": _predictor(spec, pair, role, half, labels, settings)},
    }
    body["metadata"]["annotations"][APPLIED_ANNOTATION] = digest_of(body)
    # KServe copies annotations into the pods, the predictor's over the service's. Without one that stays, a changed number
    # of replicas would change every pod's annotation and so start all of them anew.
    body["spec"]["predictor"].setdefault("annotations", {})[APPLIED_ANNOTATION] = "see the InferenceService"
    return body


def _predictor(
    spec: PipelineSpec, pair: RegisteredPair, role: Role, half: HalfTemplate, labels: Body, settings: OperatorSettings
) -> Body:
    assert spec.serving is not None
    has_room = spec.serving.rollout.strategy == "BlueGreen"
    predictor: Body = {
        **_scaling(half.autoscaling),
        "timeout": half.timeout_seconds,
        # One more first waits forever where no room for a second copy is.
        "deploymentStrategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": int(has_room), "maxUnavailable": int(not has_room)},
        },
        "labels": labels,
        "serviceAccountName": settings.serving_service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 120 if role == "policy" else 60,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "model": _model(pair, role, half, settings),
    }
    template = half.pod_template or {}
    metadata = template.get("metadata") or {}
    over = {
        **(template.get("spec") or {}),
        **{key: metadata[key] for key in ("labels", "annotations") if key in metadata},
    }
    return merged(predictor, over)


def _model(pair: RegisteredPair, role: Role, half: HalfTemplate, settings: OperatorSettings) -> Body:
    runtime = settings.policy_runtime if role == "policy" else settings.critic_runtime
    model: Body = {
        "modelFormat": {"name": f"irlops-{role}", "version": "1"},
        "runtime": half.runtime or runtime,
        "storageUri": storage_uri(pair, role, half),
    }
    if role == "critic" and settings.critic_protocol == "v2":
        model["protocolVersion"] = "v2"
    if resources := half.resources.model_dump(exclude_defaults=True):
        model["resources"] = resources
    if half.args:
        model["args"] = list(half.args)
    if half.env:
        model["env"] = list(half.env)
    return model


def _scaling(scaling: Autoscaling) -> Body:
    bounds: Body = {"minReplicas": scaling.min_replicas, "maxReplicas": scaling.max_replicas}
    if scaling.class_ == "hpa":
        return bounds | {"scaleMetric": "cpu", "scaleTarget": scaling.target_cpu_percent or 80}
    if scaling.class_ == "keda":
        return bounds | {"autoScaling": {"metrics": scaling.metrics}}
    return bounds


def pair_config(pipeline: Mapping[str, Any], pair: RegisteredPair, settings: OperatorSettings) -> Body:
    """The ConfigMap that sends the gateway's requests to ``pair``. It belongs to the chart; we apply its one key.

    No owner reference: gateways mount it and have to start without any pipeline, and the next pipeline that serves takes it
    over as it is. After its pipeline's end it names servers that are gone, so gateways aren't ready until then.
    """
    name = pipeline["metadata"]["name"]

    def url(role: Role, version: int) -> str:
        service = service_name(name, role, version, namespace=settings.namespace)
        return f"http://{service}-predictor.{settings.namespace}.svc"

    section: Body = {
        "policy": {"url": url("policy", pair.policy_version), "model": "policy"},
        "critic": {"url": url("critic", pair.critic_version), "model": "critic", "protocol": settings.critic_protocol},
        "policy_version": str(pair.policy_version),
        "critic_version": str(pair.critic_version),
    }
    if pair.calibration:
        section["calibration"] = dict(pair.calibration)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": settings.gateway_pair_config_map},
        "data": {PAIR_CONFIG_KEY: yaml.safe_dump({"pair": section}, sort_keys=True)},
    }


def versions_of(pair: RegisteredPair) -> PairVersions:
    """Its name in a status."""
    return PairVersions(policy_version=str(pair.policy_version), critic_version=str(pair.critic_version))


def service_versions(service: Mapping[str, Any]) -> PairVersions | None:
    """Which pair an InferenceService of ours serves a half of."""
    labels = service["metadata"].get("labels", {})
    policy, critic = labels.get(POLICY_VERSION_LABEL), labels.get(CRITIC_VERSION_LABEL)
    return PairVersions(policy_version=policy, critic_version=critic) if policy and critic else None


def is_leaving(service: Mapping[str, Any]) -> bool:
    """Deleted, and there until KServe's finalizer lets go; its last status still says that it is ready."""
    return "deletionTimestamp" in service["metadata"]


def is_ready(service: Mapping[str, Any]) -> bool:
    """Whether KServe says so. Its observedGeneration is the Deployment's, not its own, so it is not compared."""
    conditions = service.get("status", {}).get("conditions", [])
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def why_not_ready(service: Mapping[str, Any]) -> str:
    """What KServe says about a half that isn't ready, the load failure first."""
    status = service.get("status", {})
    failure = status.get("modelStatus", {}).get("lastFailureInfo") or {}
    if failure.get("message"):
        return f"{failure.get('reason', 'failed')}: {failure['message']}"[:500]
    for condition in status.get("conditions", []):
        if condition.get("status") == "False" and condition.get("message"):
            return f"{condition.get('reason', condition['type'])}: {condition['message']}"[:500]
    return "KServe hasn't reported it ready"
