"""Namespaces of their own for the chart and for the manifests; skipped with one line where there is no cluster."""

import secrets
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

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
        cluster.has_controller_manager = has_default_account(cluster)
        if not cluster.has_controller_manager:  # without the account every pod would be refused
            cluster.kubectl("create", "serviceaccount", "default")
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")


def has_default_account(cluster):
    """A controller manager makes it, within a moment."""
    for _ in range(15):
        if cluster.find("serviceaccount", "default") is not None:
            return True
        time.sleep(1)
    return False


@contextmanager
def custom_resource(cluster):
    """As this checkout has it. Taken away again where there was none: Helm would leave it, marked as a release's that is gone,
    and then refuse to install it anywhere else."""
    chart = REPOSITORY / "charts" / "irlops-crds"
    if (found := cluster.find("customresourcedefinitions", CRD)) is not None:
        text = (chart / "templates" / "reasoningpipelines.yaml").read_text()
        # Untouched where it is the same: what kubectl applied by force, Helm would contend for at its next upgrade.
        if found["spec"]["versions"] != yaml.safe_load(text)["spec"]["versions"]:
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=text)
        yield
        return
    cluster.helm("install", "irlops-crds", str(chart))
    try:
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=60s")
        yield
    finally:
        cluster.kubectl("delete", "customresourcedefinition", CRD, "--timeout=60s")


@pytest.fixture(scope="session")
def cluster():
    """The charts, installed by Helm; what they made goes with the namespace."""
    with namespace("irlops-test") as cluster, custom_resource(cluster):
        cluster.install("install")
        yield cluster


@pytest.fixture(scope="module")
def bare():
    """A namespace with nothing of the charts: for those who don't use Helm."""
    with namespace("irlops-manifests") as cluster:
        yield cluster
