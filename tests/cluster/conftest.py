"""Namespaces of their own for the chart and for the manifests; skipped with one line where there is no cluster."""

import secrets
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.real_cluster import REPOSITORY, Cluster, why_no_cluster

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
CRD = "reasoningpipelines.irlops.dev"


def pytest_collection_modifyitems(items):
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = why_no_cluster() if here else None
    for item in here:
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(900))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@contextmanager
def namespace(prefix):
    """Under PodSecurity `restricted`, and gone with all that is in it at the end."""
    cluster = Cluster(f"{prefix}-{secrets.token_hex(3)}")
    cluster.kubectl("create", "namespace", cluster.namespace)
    try:
        cluster.kubectl("label", "namespace", cluster.namespace, RESTRICTED)
        give_default_account(cluster)
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")


def give_default_account(cluster):
    """What a controller manager does; beside an API server alone nobody does, and it would refuse every pod."""
    for _ in range(5):
        if cluster.find("serviceaccount", "default") is not None:
            return
        time.sleep(1)
    cluster.kubectl("create", "serviceaccount", "default")


@pytest.fixture(scope="session")
def cluster():
    """The charts, installed by Helm. The CRD stays (its chart keeps it); everything else goes with the namespace."""
    with namespace("irlops-test") as cluster:
        charts = REPOSITORY / "charts"
        if cluster.find("customresourcedefinitions", CRD) is None:
            cluster.helm("install", "irlops-crds", str(charts / "irlops-crds"))
        else:  # an earlier one, that Helm would never bring up to date
            crd = (charts / "irlops-crds" / "templates" / "reasoningpipelines.yaml").read_text()
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=crd)
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=60s")
        cluster.install("install")
        yield cluster


@pytest.fixture(scope="module")
def bare():
    """A namespace with nothing of the charts: for those who don't use Helm."""
    with namespace("irlops-manifests") as cluster:
        yield cluster
