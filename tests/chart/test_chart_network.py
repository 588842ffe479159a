"""Who reaches whom, worked out from the rendered NetworkPolicies as a network plugin would."""

import pytest

from support.charts import CASES, pod_templates, render

RELEASE = {"irlops.dev/release": "irlops"}
JOB = {**RELEASE, "irlops.dev/role": "job"}
STRANGER = {"app": "somebody-else"}


def matches(selector, labels):
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return wanted and all(labels.get(each["key"]) in each["values"] for each in expressions)


def allows(rules, side, peer, port):
    for rule in rules:
        ports = rule.get("ports")
        peers = rule.get(side)
        port_fits = ports is None or port in [each["port"] for each in ports]
        peer_fits = peers is None or any(
            "podSelector" in each and "namespaceSelector" not in each and matches(each["podSelector"], peer)
            for each in peers
        )
        if port_fits and peer_fits:
            return True
    return False


def reaches(objects, source, target, port):
    """Whether a pod with labels ``source`` may open ``port`` of a pod with labels ``target``, both in this namespace."""
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    leaving = [p for p in policies if matches(p["podSelector"], source) and "Egress" in p["policyTypes"]]
    entering = [p for p in policies if matches(p["podSelector"], target) and "Ingress" in p["policyTypes"]]
    out = not leaving or any(allows(p.get("egress", []), "to", target, port) for p in leaving)
    into = not entering or any(allows(p.get("ingress", []), "from", source, port) for p in entering)
    return out and into


@pytest.fixture(scope="module")
def objects():
    return render(CASES["default"])


def pod(objects, name):
    return next(pod["metadata"]["labels"] for found, pod in pod_templates(objects) if found.endswith(f"/irlops-{name}"))


@pytest.mark.parametrize("half", ["policy-vllm", "critic-vllm", "policy-cpu", "critic-cpu"])
def test_only_the_gateway_reaches_policy_and_critic(objects, half):
    served = pod(objects, half)
    assert reaches(objects, pod(objects, "gateway"), served, 8080)
    for other in (JOB, STRANGER, pod(objects, "operator"), pod(objects, "mlflow"), served):
        assert not reaches(objects, other, served, 8080)


def test_only_jobs_and_the_operator_reach_mlflow(objects):
    mlflow = pod(objects, "mlflow")
    assert reaches(objects, JOB, mlflow, 5000)
    assert reaches(objects, pod(objects, "operator"), mlflow, 5000)
    for other in (STRANGER, pod(objects, "gateway"), pod(objects, "policy-vllm")):
        assert not reaches(objects, other, mlflow, 5000)


def test_jobs_of_one_release_reach_each_other_and_no_job_of_another(objects):
    assert reaches(objects, JOB, JOB, 29400)
    assert not reaches(objects, {**JOB, "irlops.dev/release": "green"}, JOB, 29400)


def test_only_mlflow_reaches_the_operators_webhook(objects):
    operator = pod(objects, "operator")
    assert reaches(objects, pod(objects, "mlflow"), operator, 8081)
    for other in (JOB, STRANGER, pod(objects, "gateway"), pod(objects, "policy-vllm")):
        assert not reaches(objects, other, operator, 8081)


def test_the_operator_reaches_the_gateways_health(objects):
    assert reaches(objects, pod(objects, "operator"), pod(objects, "gateway"), 8080)


def test_the_helm_test_of_mlflow_is_let_in_as_a_job(objects):
    assert reaches(objects, pod(objects, "test-mlflow"), pod(objects, "mlflow"), 5000)


def test_a_gateway_behind_a_proxy_lets_in_the_operator_and_the_helm_test_and_no_other_pod():
    objects = render(CASES["production"])
    gateway = pod(objects, "gateway")
    assert reaches(objects, pod(objects, "operator"), gateway, 8080)
    assert reaches(objects, pod(objects, "test-gateway"), gateway, 8080)
    assert not reaches(objects, STRANGER, gateway, 8080)


def test_everything_else_of_the_release_is_denied(objects):
    unnamed = {**RELEASE, "irlops.dev/role": "something-new"}
    assert not reaches(objects, unnamed, STRANGER, 443)
    assert not reaches(objects, STRANGER, unnamed, 8080)


def test_prometheus_reaches_served_models_only_where_it_is_named():
    from_monitoring = lambda values: [
        each["metadata"]["name"]
        for each in render(values)
        if each["kind"] == "NetworkPolicy"
        and "kubernetes.io/metadata.name': 'monitoring'" in str(each["spec"].get("ingress"))
    ]
    assert from_monitoring({}) == []
    assert from_monitoring(CASES["production"]) == ["irlops-gateway", "irlops-operator", "irlops-serving"]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.example.com:4318", 4318),
        ("https://collector.example.com", 443),
        ("http://collector.example.com", 80),
    ],
)
def test_the_egress_of_what_sends_traces_follows_their_collector(endpoint, port):
    objects = render({"gateway": {"settings": {"otlpEndpoint": endpoint}}})
    for sender in ("gateway", "policy-cpu", "critic-cpu"):
        assert reaches(objects, pod(objects, sender), STRANGER, port)
    assert not reaches(render(), pod(objects, "gateway"), STRANGER, port)


def test_the_cpu_runtimes_are_told_the_gateways_collector():
    endpoint = "http://collector.example.com:4318"
    objects = render({"gateway": {"settings": {"otlpEndpoint": endpoint}}})
    told = [
        {one["name"]: one["value"] for one in runtime["spec"]["containers"][0]["env"]}.get(
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        )
        for runtime in objects
        if runtime["kind"] == "ServingRuntime" and runtime["metadata"]["name"].endswith("-cpu")
    ]
    assert told == [endpoint, endpoint]
