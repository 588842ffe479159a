"""Values that the schema refuses, and combinations that install but can't work."""

import re

import helm_python
import pytest

from support.charts import CHARTS, render

REFUSED = {
    "mlflow.enabled and mlflow.trackingUri are both set": {"mlflow": {"trackingUri": "http://mine"}},
    "The operator keeps pairs in MLflow, and there is none": {"mlflow": {"enabled": False}},
    "would open one SQLite file from several pods": {"mlflow": {"replicas": 2}},
    "can't share artifacts on one pod's volume": {"mlflow": {"replicas": 2, "backend": {"existingSecret": "db"}}},
    "artifacts would stay on the volume": {"mlflow": {"artifacts": {"existingSecret": "bucket"}}},
    "and runtimes.enabled is false": {"runtimes": {"enabled": False}},
    "runtimes.default is vllm, but runtimes.vllm.enabled is false": {"runtimes": {"vllm": {"enabled": False}}},
    "gateway.route.kind=Ingress without hosts": {"gateway": {"route": {"kind": "Ingress"}}},
    "hangs on no Gateway": {"gateway": {"route": {"kind": "HTTPRoute", "hosts": ["a.example.com"]}}},
    "the route would send it plain http": {
        "gateway": {"route": {"kind": "Ingress", "hosts": ["a.example.com"]}, "tls": {"secretName": "cert"}}
    },
    "gateway.auth.disabled answers anyone": {"gateway": {"auth": {"disabled": True, "existingSecret": "keys"}}},
    "the gateway reads one file": {
        "gateway": {"auth": {"existingSecret": "keys", "keys": [{"name": "me", "sha256": "0" * 64}]}}
    },
    "would let the whole network spend your GPUs": {
        "gateway": {"auth": {"disabled": True}, "service": {"type": "LoadBalancer"}}
    },
    "gateway.autoscaling.minReplicas (5) is above maxReplicas (2)": {
        "gateway": {"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}}
    },
    "gateway.resources.requests.cpu is not set": {
        "gateway": {"autoscaling": {"enabled": True}, "resources": {"requests": {"cpu": None}}}
    },
    "several gateways would grant a multiple": {"gateway": {"settings": {"limits": {"requests_per_minute": 60}}}},
    "its ServiceMonitor would only show targets that are down": {
        "networkPolicy": {"gatewayFrom": [{"podSelector": {}}]}, "monitoring": {"serviceMonitors": "always"},
    },
    "registryPollSeconds (600) is above resyncSeconds (300)": {"operator": {"registryPollSeconds": 600}},
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "values"), REFUSED.items(), ids=REFUSED.keys())
def test_a_combination_that_cannot_work_is_refused_with_a_sentence(sentence, values):
    with pytest.raises(helm_python.HelmRenderError) as refusal:
        render(values)
    assert sentence in str(refusal.value)


def test_every_refusal_of_the_chart_is_reached_by_a_test():
    text = (CHARTS / "irlops" / "templates" / "validate.yaml").read_text()
    templates = re.findall(r'fail (?:\(printf )?"([^"]+)"', text)
    patterns = [re.sub("%[sd]", ".+", re.escape(template)) for template in templates]
    refusals = "\n".join(refusal_of(values) for values in REFUSED.values())
    reached = {pattern for pattern in patterns if re.search(pattern, refusals)}
    assert reached == set(patterns)


def refusal_of(values):
    with pytest.raises(helm_python.HelmRenderError) as refusal:
        render(values)
    return str(refusal.value)


def test_every_refusal_says_what_to_do():
    text = (CHARTS / "irlops" / "templates" / "validate.yaml").read_text()
    for sentence in re.findall(r'fail (?:\(printf )?"([^"]+)"', text):
        assert re.search(r"\b(Set|Unset|Keep|Give|Swap|Enable|Lower)\b", sentence), sentence


SCHEMA_NEGATIVES = {
    "a mistyped key": ({"gateway": {"replcas": 3}}, "replcas"),
    "a namespace value": ({"namespace": "other"}, "namespace"),
    "a word for a number": ({"gateway": {"replicas": "three"}}, "replicas"),
    "no gateway at all": ({"gateway": {"replicas": 0}}, "replicas"),
    "an unknown route": ({"gateway": {"route": {"kind": "VirtualService"}}}, "kind"),
    "a digest that is none": ({"images": {"jobs": {"digest": "abc"}}}, "digest"),
    "root": ({"podSecurity": {"runAsUser": 0}}, "runAsUser"),
    "a setting the gateway doesn't know": (
        {"gateway": {"settings": {"limits": {"max_candidats": 8}}}},
        "max_candidats",
    ),
    "more candidates than the gateway allows": (
        {"gateway": {"settings": {"rerank": {"candidates": 65}}}},
        "candidates",
    ),
    "a key in plain text": ({"gateway": {"auth": {"keys": [{"name": "me", "sha256": "irl-secret"}]}}}, "sha256"),
    "oidc without an issuer": ({"gateway": {"auth": {"oidc": {"audience": "irlops"}}}}, "oidc"),
    "an unknown protocol": ({"pair": {"critic": {"protocol": "grpc"}}}, "protocol"),
    "a monitor that is neither made nor not": ({"monitoring": {"serviceMonitors": True}}, "serviceMonitors"),
}


@pytest.mark.parametrize(("values", "named"), SCHEMA_NEGATIVES.values(), ids=SCHEMA_NEGATIVES.keys())
def test_the_schema_refuses_and_names_the_key(values, named):
    with pytest.raises(helm_python.HelmError) as refusal:
        render(values)
    assert named in str(refusal.value)
