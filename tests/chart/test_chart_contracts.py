"""The chart and the programs agree: settings, metrics, keys, generated files, guides."""

import base64
import importlib.util
import json
import os
import re
import sys
from urllib.parse import urlsplit

import pytest
import yaml

from irlops.contracts.operator import OPERATOR_SERIES, load_operator_settings
from irlops.operator import webhook
from irlops_serving.gateway.keys import make_key, read_key_file
from irlops_serving.gateway.metrics import Metrics
from irlops_serving.gateway.settings import load_settings
from support.certificates import self_signed
from support.charts import ALL_MONITORS, CASES, CHARTS, find, render

GUIDE = CHARTS.parent / "docs" / "guides" / "alerts.md"


@pytest.fixture
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("IRLOPS_", "MLFLOW_")):
            monkeypatch.delenv(name)
    return monkeypatch


def gateway_settings(values, environment, folder):
    objects = render(values)
    for name, value in find(objects, "ConfigMap", "irlops-gateway")["data"].items():
        environment.setenv(name, value)
    if "IRLOPS_GATEWAY_TLS_CERT_FILE" in os.environ:  # mounted from a Secret on a cluster; here a pair of our own
        certificate, key = self_signed(folder)
        environment.setenv("IRLOPS_GATEWAY_TLS_CERT_FILE", str(certificate))
        environment.setenv("IRLOPS_GATEWAY_TLS_KEY_FILE", str(key))
    config = folder / "gateway.yaml"
    config.write_text(find(objects, "ConfigMap", "irlops-gateway-pair")["data"]["gateway.yaml"])
    return load_settings(config)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())
def test_the_gateway_starts_with_what_the_chart_renders(values, clean_environment, tmp_path):
    settings = gateway_settings(values, clean_environment, tmp_path)
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.auth.keys_file or settings.auth.oidc


def test_every_gateway_setting_of_the_production_values_arrives(clean_environment, tmp_path):
    settings = gateway_settings(CASES["production"], clean_environment, tmp_path)
    assert settings.limits.requests_per_minute == 600
    assert settings.timeouts.drain_delay_s == 5
    assert settings.auth.oidc.issuer == "https://login.example.com"
    assert settings.pair.critic.protocol == "vllm"
    assert settings.pair.policy.url == "http://irlops-policy-predictor.team-a.svc"


def test_urls_and_calibration_of_a_pair_in_the_values_arrive(clean_environment, tmp_path):
    pair = {
        "policy": {"url": "https://p.example.com"},
        "critic": {"protocol": "v2"},
        "policyVersion": "7",
        "calibration": {"temperature": 2.5, "aggregation": "min"},
    }
    settings = gateway_settings({"pair": pair}, clean_environment, tmp_path)
    assert settings.pair.policy_version == "7"
    assert settings.pair.policy.url == "https://p.example.com"
    assert (settings.pair.critic.protocol, settings.pair.calibration.temperature) == ("v2", 2.5)


def test_the_gateway_reads_the_key_file_that_the_chart_makes(tmp_path):
    _, entry = make_key("team-a", ["reranked"])
    key = entry.model_dump(mode="json", exclude_none=True)
    secret = find(render({"gateway": {"auth": {"keys": [key]}}}), "Secret", "irlops-gateway-keys")
    file = tmp_path / "keys.yaml"
    file.write_text(secret["stringData"]["keys.yaml"])
    assert list(read_key_file(file)) == [entry.sha256]


@pytest.mark.parametrize("case", ["default", "trial", "production", "an MLflow of one's own"])
def test_the_operator_starts_with_what_the_chart_renders(case, clean_environment):
    objects = render(CASES[case])
    for name, value in find(objects, "ConfigMap", "irlops-operator")["data"].items():
        clean_environment.setenv(name, value)
    container = find(objects, "Deployment", "irlops-operator")["spec"]["template"]["spec"]["containers"][0]
    for variable in container["env"]:
        clean_environment.setenv(variable["name"], "from-the-api")
    settings = load_operator_settings()
    assert settings.release == "irlops"
    assert settings.job_credentials_secret


def test_mlflow_is_told_an_address_and_a_secret_that_the_operator_listens_with():
    objects = render()
    url = urlsplit(find(objects, "ConfigMap", "irlops-operator")["data"]["IRLOPS_OPERATOR_WEBHOOK_URL"])
    service = find(objects, "Service", url.hostname.split(".")[0])
    [port] = [port for port in service["spec"]["ports"] if port["port"] == url.port]
    container = find(objects, "Deployment", "irlops-operator")["spec"]["template"]["spec"]["containers"][0]
    assert {"name": port["targetPort"], "containerPort": url.port, "protocol": "TCP"} in container["ports"]
    assert url.path == webhook.PATH
    keys = find(objects, "Secret", "irlops-mlflow-auth")["data"]
    assert len(base64.urlsafe_b64decode(base64.b64decode(keys["webhook-encryption-key"]))) == 32  # what Fernet wants
    assert "webhook-secret" in keys


def test_the_operator_may_patch_the_config_map_that_it_is_told_to_write():
    objects = render()
    told = find(objects, "ConfigMap", "irlops-operator")["data"]["IRLOPS_OPERATOR_GATEWAY_PAIR_CONFIG_MAP"]
    mounted = find(objects, "Deployment", "irlops-gateway")["spec"]["template"]["spec"]["volumes"][0]["configMap"][
        "name"
    ]
    rules = find(objects, "Role", "irlops-operator")["rules"]
    assert told == mounted
    assert any("configmaps" in rule["resources"] and "patch" in rule["verbs"] for rule in rules)


def test_service_accounts_and_secrets_that_the_operator_gives_to_others_exist():
    objects = render()
    config = find(objects, "ConfigMap", "irlops-operator")["data"]
    for key in ("JOB_SERVICE_ACCOUNT", "SERVING_SERVICE_ACCOUNT"):
        assert find(objects, "ServiceAccount", config[f"IRLOPS_OPERATOR_{key}"])
    assert find(objects, "Secret", config["IRLOPS_OPERATOR_JOB_CREDENTIALS_SECRET"])


def gateway_series():
    text = Metrics().registry.collect()
    return {
        sample
        for family in text
        for sample in (family.name, *(f"{family.name}{suffix}" for suffix in SUFFIXES[family.type]))
    }


SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ()}


def vllm_series():
    module = importlib.util.find_spec("vllm")
    if module is None or module.submodule_search_locations is None:
        pytest.skip("vLLM is not installed, so the names of its series can't be looked up")
    sources = __import__("pathlib").Path(module.submodule_search_locations[0]).glob("v1/metrics/*.py")
    return set(re.findall(r'name="(vllm:[a-z_]+)"', "".join(source.read_text() for source in sources)))


def known_series():
    operator = {f"{name}{suffix}" for name in OPERATOR_SERIES for suffix in ("", "_bucket", "_sum", "_count")}
    return gateway_series() | operator | vllm_series() | {"up"}


NAMES = re.compile(r"\b(?:irlops_[a-z_]+|gen_ai_[a-z_]+|vllm:[a-z_]+|up)(?=\{)")


def rules():
    objects = render({"monitoring": ALL_MONITORS})
    return find(objects, "PrometheusRule", "irlops")["spec"]["groups"][0]["rules"]


def test_every_series_of_an_alert_is_exported_by_somebody():
    used = {name for rule in rules() for name in NAMES.findall(rule["expr"])}
    assert len(used) > 12
    assert used - known_series() == set()


@pytest.mark.parametrize("path", sorted((CHARTS / "irlops" / "dashboards").glob("*.json")), ids=lambda path: path.stem)
def test_every_series_of_a_dashboard_is_exported_by_somebody(path):
    board = json.loads(path.read_text())
    used = {name for panel in board["panels"] for target in panel["targets"] for name in NAMES.findall(target["expr"])}
    assert used
    assert used - known_series() == set()


def fault_in(parser, query):
    try:
        parser.parse(query)
    except ValueError as error:
        return f"{query}: {error}"
    return None


def test_every_query_of_ours_is_promql():
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    boards = [json.loads(path.read_text()) for path in (CHARTS / "irlops" / "dashboards").glob("*.json")]
    shown = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    queries = [rule["expr"] for rule in rules()] + shown
    assert [fault for query in queries if (fault := fault_in(parser, query))] == []


def test_alerts_are_about_this_release_alone():
    assert all('namespace="team-a"' in rule["expr"] for rule in rules())


def test_the_guide_has_a_section_for_every_alert_and_for_no_other():
    sections = set(re.findall(r"^## (Irlops\w+)$", GUIDE.read_text(), flags=re.MULTILINE))
    assert sections == {rule["alert"] for rule in rules()}


def test_a_runbook_link_leads_to_the_alerts_section():
    objects = render({"monitoring": {**ALL_MONITORS, "runbookBaseUrl": "https://x.example.com/alerts.md#"}})
    first = find(objects, "PrometheusRule", "irlops")["spec"]["groups"][0]["rules"][0]
    assert first["annotations"]["runbook_url"] == "https://x.example.com/alerts.md#irlopsgatewaydown"


def test_alerts_of_the_operator_come_with_the_operator_only():
    values = {**CASES["gateway alone"], "monitoring": ALL_MONITORS}
    alone = find(render(values), "PrometheusRule", "irlops")["spec"]["groups"][0]["rules"]
    assert not [rule for rule in alone if "irlops_operator" in rule["expr"] or "vllm:" in rule["expr"]]


def test_monitors_rules_and_dashboards_wait_for_their_apis():
    kinds = {each["kind"] for each in render({})}  # rendered without any API but Kubernetes' own
    assert not kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule"}


def test_schema_and_readme_are_what_the_values_say():
    sys.path.insert(0, str(CHARTS))
    try:
        import document_values
    finally:
        sys.path.remove(str(CHARTS))
    stale = [path.name for path, text in document_values.render().items() if path.read_text() != text]
    assert stale == [], "run: python charts/document_values.py"


def test_every_value_is_documented():
    sys.path.insert(0, str(CHARTS))
    try:
        import document_values
    finally:
        sys.path.remove(str(CHARTS))
    leaves = document_values._leaves(document_values.read_values((CHARTS / "irlops" / "values.yaml").read_text()))
    assert [leaf.path for leaf in leaves if not leaf.comment and leaf.path not in ("global",)] == []
    assert len(leaves) > 90


def test_every_object_of_the_schema_is_closed_or_open_on_purpose():
    schema = json.loads((CHARTS / "irlops" / "values.schema.json").read_text())
    taken_as_they_come = {"resources", "affinity", "calibration"}

    def open_objects(part, path):
        if part.get("type") == "object" and "additionalProperties" not in part and "maxProperties" not in part:
            yield path
        for name, inner in part.get("properties", {}).items():
            yield from open_objects(inner, f"{path}.{name}")

    found = {path for path in open_objects(schema, "") if path.rsplit(".", 1)[-1] not in taken_as_they_come}
    assert found == {".global"}  # a parent chart's globals have keys of their own


def test_the_two_charts_and_the_package_are_one_version():
    versions = {
        yaml.safe_load((CHARTS / name / "Chart.yaml").read_text())["appVersion"] for name in ("irlops", "irlops-crds")
    }
    project = re.search(r'^version = "(.+)"$', (CHARTS.parent / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert versions == {project[1]}
