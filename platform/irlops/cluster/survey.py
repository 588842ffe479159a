"""What a cluster has of what training jobs and servers need, asked with the caller's own rights and without a change.

Source of names and versions: training operator v1.9.4 (manifests/overlays/standalone) and KServe v0.21 (charts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irlops.contracts.findings import Finding
from irlops.errors import ConfigError, UnavailableError

AREA = "cluster"
TIMEOUT_S = 10
TRAINING_OPERATOR = "v1.9.4"
KSERVE = "v0.21.0"
MIN_KUBERNETES = (1, 29)

_TRAINING_FIX = (
    'kubectl apply --server-side -k "github.com/kubeflow/training-operator.git/manifests/overlays/standalone?ref='
    f'{TRAINING_OPERATOR}"'
)
_KSERVE_FIX = (
    f"helm install kserve-crd oci://ghcr.io/kserve/charts/kserve-crd --version {KSERVE} && "
    f"helm install kserve oci://ghcr.io/kserve/charts/kserve-resources --version {KSERVE} -n kserve --create-namespace "
    "--set kserve.controller.deploymentMode=Standard"
)
_IRLOPS_FIX = "helm install irlops-crds charts/irlops-crds && helm install irlops charts/irlops"

_NEEDED_KINDS = {
    "pytorchjobs.kubeflow.org": _TRAINING_FIX,
    "inferenceservices.serving.kserve.io": _KSERVE_FIX,
    "servingruntimes.serving.kserve.io": _KSERVE_FIX,
}
_OPTIONAL_KINDS = {
    "reasoningpipelines.irlops.dev": ("pipelines", _IRLOPS_FIX),
    "httproutes.gateway.networking.k8s.io": ("routes through the Gateway API", None),
    "servicemonitors.monitoring.coreos.com": ("Prometheus monitors", None),
    "scaledobjects.keda.sh": ("scaling on vLLM's own numbers", None),
}
_CONTROLLERS = {
    "training-operator": ("training operator", _TRAINING_FIX),
    "kserve-controller-manager": ("KServe controller", _KSERVE_FIX),
}

_KSERVE_CONFIG = "inferenceservice-config"


@dataclass(frozen=True)
class _Cluster:
    """A connection. The client's generated classes are typed too loosely to help, hence ``Any``."""

    client: Any
    """The module ``kubernetes.client``."""
    api: Any
    namespace: str
    """Where jobs would run."""


def cluster_findings(kubeconfig: Path | None = None, namespace: str | None = None) -> list[Finding]:
    """Look at the cluster of ``kubeconfig`` (None: the usual places).

    Raises:
        ConfigError: the kubeconfig can't be read.
        UnavailableError: the API server does not answer.
    """
    cluster = _connect(kubeconfig, namespace)
    findings = [_version(cluster)]
    for look in (_kinds, _controllers, _served_addresses, _storage_classes, _nodes, _rights):
        findings += _unless_forbidden(look, cluster)
    return findings


def _connect(kubeconfig: Path | None, namespace: str | None) -> _Cluster:
    import kubernetes
    from kubernetes.config.config_exception import ConfigException

    config: Any = kubernetes.config

    file = str(kubeconfig) if kubeconfig else None
    try:
        api = config.new_client_from_config(file)
        _, active = config.list_kube_config_contexts(file)
    except (ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"The kubeconfig {kubeconfig or '(default place)'} can't be used ({error}). Set KUBECONFIG to one that "
            "works with `kubectl get ns`."
        ) from error
    api.configuration.retries = False
    client: Any = kubernetes.client
    default_namespace = active["context"].get("namespace", "default")
    return _Cluster(client, client.ApiClient(api.configuration), namespace or default_namespace)


def _version(cluster: _Cluster) -> Finding:
    import urllib3

    try:
        found = cluster.client.VersionApi(cluster.api).get_code(_request_timeout=TIMEOUT_S)
    except (cluster.client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(
            f"The Kubernetes API at {cluster.api.configuration.host} does not answer ({_short(error)}). Is the cluster up, "
            "and is KUBECONFIG the right one?"
        ) from error
    numbers = tuple(int(re.sub(r"\D", "", part) or 0) for part in (found.major, found.minor))
    if numbers >= MIN_KUBERNETES:
        return Finding(AREA, "Kubernetes", "ok", f"{found.git_version} at {cluster.api.configuration.host}")
    wanted = ".".join(map(str, MIN_KUBERNETES))
    return Finding(AREA, "Kubernetes", "missing", f"{found.git_version}, needs {wanted}", "Upgrade the cluster.")


def _kinds(cluster: _Cluster) -> Iterator[Finding]:
    listed = (
        cluster.client.ApiextensionsV1Api(cluster.api).list_custom_resource_definition(_request_timeout=TIMEOUT_S).items
    )
    versions = {kind.metadata.name: [v.name for v in kind.spec.versions if v.served] for kind in listed}
    for name, fix in _NEEDED_KINDS.items():
        if name in versions:
            yield Finding(AREA, name, "ok", ", ".join(versions[name]))
        else:
            yield Finding(AREA, name, "missing", "this kind is not installed", fix)
    for name, (purpose, fix) in _OPTIONAL_KINDS.items():
        if name in versions:
            yield Finding(AREA, name, "ok", ", ".join(versions[name]))
        else:
            yield Finding(AREA, name, "optional", f"not installed: no {purpose}", fix)


def _controllers(cluster: _Cluster) -> Iterator[Finding]:
    """The controllers behind the kinds: a kind without one accepts objects, and nothing ever happens."""
    deployments = (
        cluster.client.AppsV1Api(cluster.api).list_deployment_for_all_namespaces(_request_timeout=TIMEOUT_S).items
    )
    for name, (title, fix) in _CONTROLLERS.items():
        found = next((deployment for deployment in deployments if deployment.metadata.name == name), None)
        if found is None:
            yield Finding(AREA, title, "missing", f"no Deployment is called {name}", fix)
            continue
        image = found.spec.template.spec.containers[0].image
        ready, place = found.status.ready_replicas or 0, f"{found.metadata.namespace}/{name}"
        if ready:
            yield Finding(AREA, title, "ok", f"{image} in {found.metadata.namespace}")
        else:
            yield Finding(
                AREA,
                title,
                "missing",
                f"{place} has no ready pod",
                f"kubectl describe deployment -n {place.replace('/', ' ')}",
            )


def _served_addresses(cluster: _Cluster) -> Iterator[Finding]:
    """Whether KServe's Services forward port 80, which the gateway calls: headless ones (OpenShift AI's default) don't."""
    found = (
        cluster.client.CoreV1Api(cluster.api)
        .list_config_map_for_all_namespaces(
            field_selector=f"metadata.name={_KSERVE_CONFIG}", _request_timeout=TIMEOUT_S
        )
        .items
    )
    for config in found:
        try:
            is_headless = json.loads(config.data["service"])["serviceClusterIPNone"] is True
        except (KeyError, TypeError, ValueError):
            continue
        place, namespace = f"{config.metadata.namespace}/{_KSERVE_CONFIG}", config.metadata.namespace
        if is_headless:
            fix = f"kubectl edit configmap -n {namespace} {_KSERVE_CONFIG}, and set serviceClusterIPNone to false in its key service"
            yield Finding(AREA, "KServe's Services", "missing", f"headless by {place}: port 80 leads nowhere", fix)
        else:
            yield Finding(AREA, "KServe's Services", "ok", "have an address of their own")


def _storage_classes(cluster: _Cluster) -> Iterator[Finding]:
    classes = cluster.client.StorageV1Api(cluster.api).list_storage_class(_request_timeout=TIMEOUT_S).items
    default = "storageclass.kubernetes.io/is-default-class"
    names = [entry.metadata.name for entry in classes]
    defaults = [e.metadata.name for e in classes if (e.metadata.annotations or {}).get(default) == "true"]
    if defaults:
        yield Finding(AREA, "storage class", "ok", f"{defaults[0]} (default) of {', '.join(names)}")
    elif names:
        fix = f"kubectl annotate storageclass {names[0]} {default}=true"
        yield Finding(AREA, "storage class", "missing", f"none of {', '.join(names)} is the default", fix)
    else:
        yield Finding(
            AREA, "storage class", "missing", "none: checkpoints have no volume", "Install a storage provisioner."
        )


def _nodes(cluster: _Cluster) -> Iterator[Finding]:
    nodes = cluster.client.CoreV1Api(cluster.api).list_node(_request_timeout=TIMEOUT_S).items
    gpus = {node.metadata.name: int((node.status.allocatable or {}).get("nvidia.com/gpu", 0)) for node in nodes}
    kinds = sorted({f"{node.status.node_info.operating_system}/{node.status.node_info.architecture}" for node in nodes})
    yield Finding(AREA, "nodes", "ok", f"{len(nodes)} ({', '.join(kinds)})")
    with_gpu = [name for name, count in gpus.items() if count]
    if with_gpu:
        yield Finding(AREA, "GPUs", "ok", f"{sum(gpus.values())} on {len(with_gpu)} nodes")
    else:
        fix = "Add GPU nodes with NVIDIA's device plugin, or run the tiny and smollm2-135m manifests."
        yield Finding(AREA, "GPUs", "optional", "no node offers nvidia.com/gpu", fix)


def _rights(cluster: _Cluster) -> Iterator[Finding]:
    """Whether the caller may create what `irlops train --cluster` creates."""
    for group, resource in (("kubeflow.org", "pytorchjobs"), ("", "configmaps"), ("", "persistentvolumeclaims")):
        asked = cluster.client.V1ResourceAttributes(
            group=group, resource=resource, verb="create", namespace=cluster.namespace
        )
        review = cluster.client.V1SelfSubjectAccessReview(
            spec=cluster.client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked)
        )
        answer = cluster.client.AuthorizationV1Api(cluster.api).create_self_subject_access_review(
            review, _request_timeout=TIMEOUT_S
        )
        name = f"create {resource}"
        if answer.status.allowed:
            yield Finding(AREA, name, "ok", f"allowed in {cluster.namespace}")
        else:
            target = f"{resource}.{group}" if group else resource
            fix = f"kubectl create role irlops-submit -n {cluster.namespace} --verb=create --resource={target}, and bind it to you"
            yield Finding(AREA, name, "missing", f"not allowed in {cluster.namespace}", fix)


def _unless_forbidden(look: Callable[[_Cluster], Iterator[Finding]], cluster: _Cluster) -> Sequence[Finding]:
    """What may not be read is said, and does not hide the rest."""
    import urllib3

    try:
        return list(look(cluster))
    except cluster.client.ApiException as error:
        if error.status not in (401, 403, 404):
            raise UnavailableError(f"The Kubernetes API failed: {_short(error)}. Try again.") from error
        what = look.__name__.strip("_").replace("_", " ")
        return [
            Finding(AREA, what, "optional", f"can't be told: the API answered {error.status}", "Ask with more rights.")
        ]
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(f"The Kubernetes API went away: {_short(error)}. Try again.") from error


def _short(error: Exception) -> str:
    return (str(getattr(error, "reason", "") or error).splitlines() or [type(error).__name__])[0][:200]
