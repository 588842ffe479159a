"""One namespace with the charts installed, for the whole suite; skipped with one line where there is no cluster."""

import secrets
from pathlib import Path

import pytest

from support.real_cluster import REPOSITORY, Cluster, why_no_cluster


def pytest_collection_modifyitems(items):
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = why_no_cluster() if here else None
    for item in here:
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(900))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cluster():
    """CRDs are installed once and stay (their chart keeps them); everything else goes with the namespace."""
    cluster = Cluster(f"irlops-test-{secrets.token_hex(3)}")
    cluster.kubectl("create", "namespace", cluster.namespace)
    try:
        enforced = "pod-security.kubernetes.io/enforce=restricted"
        cluster.kubectl("label", "namespace", cluster.namespace, enforced)
        if cluster.find("customresourcedefinitions", "reasoningpipelines.irlops.dev") is None:
            cluster.helm("install", "irlops-crds", str(REPOSITORY / "charts" / "irlops-crds"))
            cluster.kubectl("wait", "--for=condition=Established", "crd/reasoningpipelines.irlops.dev", "--timeout=60s")
        trial = REPOSITORY / "charts" / "irlops" / "values-trial.yaml"
        cluster.helm("install", "irlops", str(REPOSITORY / "charts" / "irlops"), "-f", str(trial))
        # Where pods run, the chart's own operator would compete for the Lease: ours runs outside, with its rights.
        cluster.kubectl("scale", "deployment/irlops-operator", "--replicas=0")
        yield cluster
    finally:
        cluster.kubectl("delete", "namespace", cluster.namespace, "--wait=false")
