"""Settings: one YAML, the environment over it, and loud about what is wrong."""

import json
import os

import pytest
import yaml

from irlops.errors import ConfigError
from irlops_serving.gateway.settings import is_loopback, load_settings

PAIR = {"policy": {"url": "http://policy:8080/"}, "critic": {"url": "http://critic:8080"}}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("IRLOPS_GATEWAY_"):
            monkeypatch.delenv(name)


def _write(path, **settings):
    path.write_text(yaml.safe_dump({"pair": PAIR, **settings}))
    return path


def test_a_yaml_with_the_two_servers_is_enough(tmp_path):
    settings = load_settings(_write(tmp_path / "gateway.yaml"))
    assert (settings.host, settings.port, settings.pair.policy.url) == ("127.0.0.1", 8080, "http://policy:8080")
    assert settings.pair.critic.protocol == "v2"


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path, monkeypatch):
    path = _write(tmp_path / "gateway.yaml", port=1, rerank={"candidates": 2, "wave": 2})
    monkeypatch.setenv("IRLOPS_GATEWAY_RERANK__CANDIDATES", "16")
    monkeypatch.setenv("IRLOPS_GATEWAY_PORT", "2")
    settings = load_settings(path, port=3)
    assert (settings.rerank.candidates, settings.rerank.wave, settings.port) == (16, 2, 3)


def test_the_file_is_found_through_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("IRLOPS_GATEWAY_CONFIG_FILE", str(_write(tmp_path / "gateway.yaml", port=7)))
    assert load_settings().port == 7


def test_a_calibration_file_is_read(tmp_path):
    calibration = {"schema": 1, "aggregation": "min", "gamma": 0.5, "temperature": 2.0, "bias": -1.0}
    (tmp_path / "calibration.json").write_text(json.dumps(calibration))
    pair = PAIR | {"calibration_file": str(tmp_path / "calibration.json")}
    settings = load_settings(_write(tmp_path / "gateway.yaml", pair=pair))
    assert (settings.pair.calibration.aggregation, settings.pair.calibration.bias) == ("min", -1.0)


def test_a_version_written_as_a_number_is_a_version(tmp_path):
    settings = load_settings(
        _write(tmp_path / "gateway.yaml", pair=PAIR | {"policy_version": 12, "critic_version": 12})
    )
    assert settings.pair.policy_version == "12"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prot": 1}, "prot"),
        ({"limits": {"max_candidats": 1}}, "limits.max_candidats"),
        ({"rerank": {"candidates": 65}}, "rerank.candidates"),
        ({"pair": {"policy": {"url": "policy:8080"}, "critic": {"url": "http://c"}}}, "pair.policy.url"),
        ({"pair": PAIR | {"calibration_file": "/nowhere.json"}}, "calibration_file /nowhere.json can't be read"),
        ({"tls_cert_file": "a.crt"}, "belong together"),
        ({"host": "0.0.0.0"}, "neither auth.keys_file nor auth.oidc is set"),
        ({"host": "::"}, "neither auth.keys_file nor auth.oidc is set"),
        ({"host": "gateway.example"}, "neither auth.keys_file nor auth.oidc is set"),
    ],
    ids=[
        "an unknown key", "an unknown nested key", "out of range", "no URL", "a missing calibration",
        "a certificate without its key", "exposed on IPv4", "exposed on IPv6", "exposed by name",
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_the_place(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        load_settings(_write(tmp_path / "gateway.yaml", **settings))


@pytest.mark.parametrize(
    "auth",
    [{"keys_file": "/keys.yaml"}, {"oidc": {"issuer": "https://id", "audience": "a"}}, {"disabled": True}],
    ids=["keys", "an identity provider", "on purpose"],
)
def test_it_may_be_exposed_when_somebody_authenticates(tmp_path, auth):
    assert load_settings(_write(tmp_path / "gateway.yaml", host="0.0.0.0", auth=auth)).host == "0.0.0.0"


def test_a_missing_file_is_refused_not_ignored(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml is not there"):
        load_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("content", ["pair: {", "- a list"], ids=["not YAML", "a list"])
def test_a_file_that_is_no_settings_is_refused(tmp_path, content):
    path = tmp_path / "gateway.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"gateway\.yaml"):
        load_settings(path)


def test_a_mistyped_variable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("IRLOPS_GATEWAY_LIMIT__MAX_QUEUED", "3")
    with pytest.raises(ConfigError, match="IRLOPS_GATEWAY_LIMIT__MAX_QUEUED"):
        load_settings(_write(tmp_path / "gateway.yaml"))


def test_variables_that_kubernetes_makes_for_a_service_of_that_name_are_ignored(tmp_path, monkeypatch):
    for name, value in {
        "PORT": "tcp://10.0.0.7:80",
        "SERVICE_HOST": "10.0.0.7",
        "SERVICE_PORT_HTTP": "80",
        "PORT_80_TCP_ADDR": "10.0.0.7",
    }.items():
        monkeypatch.setenv(f"IRLOPS_GATEWAY_{name}", value)
    assert load_settings(_write(tmp_path / "gateway.yaml")).port == 8080


def test_secrets_do_not_show(tmp_path, monkeypatch):
    monkeypatch.setenv("IRLOPS_GATEWAY_PAIR__POLICY__API_KEY", "hush")
    settings = load_settings(_write(tmp_path / "gateway.yaml"))
    assert settings.pair.policy.api_key.get_secret_value() == "hush"
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings.model_dump())


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x", False)],
)
def test_loopback_addresses_are_told_from_others(host, only_here):
    assert is_loopback(host) is only_here


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_cert_file": "none.pem", "tls_key_file": "none.key"}, "tls_cert_file none.pem .*No such file"),
        (
            {"pair": PAIR | {"critic": PAIR["critic"] | {"ca_file": "bad.pem"}}},
            "pair.critic.ca_file .*bad.pem can't be used",
        ),
        ({"pair": PAIR | {"policy": PAIR["policy"] | {"tokenizer_file": "none.json"}}}, "none.json is not there"),
    ],
    ids=["no certificate", "an authority that is no certificate", "no tokenizer"],
)
def test_a_file_that_cannot_be_used_is_said_at_the_start(tmp_path, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=said):
        load_settings(_write(tmp_path / "gateway.yaml", **settings))
