"""API keys: hashed in a file, made by a command, hot reloaded."""

from datetime import UTC, datetime, timedelta

import pytest
import yaml

from irlops.errors import ConfigError
from irlops_serving.gateway.auth import KeyRing
from irlops_serving.gateway.errors import ApiError
from irlops_serving.gateway.keys import hash_key, main, make_key, read_key_file
from irlops_serving.gateway.metrics import Metrics


def _write(path, *entries):
    path.write_text(yaml.safe_dump({"keys": list(entries)}))
    return path


def _entry(key, **fields):
    return {"name": "team-a", "sha256": hash_key(key), **fields}


def test_a_key_is_known_by_its_hash_and_carries_its_limits(tmp_path):
    path = _write(tmp_path / "keys.yaml", _entry("k", models=["reranked"], requests_per_minute=5))
    caller = KeyRing(path, Metrics()).caller_of("k")
    assert (caller.name, caller.models, caller.requests_per_minute) == ("team-a", frozenset({"reranked"}), 5)


def test_an_unknown_key_is_refused(tmp_path):
    ring = KeyRing(_write(tmp_path / "keys.yaml", _entry("k")), Metrics())
    with pytest.raises(ApiError, match="not known here") as refused:
        ring.caller_of("another")
    assert refused.value.status == 401


def test_an_expired_key_is_refused_with_its_date(tmp_path):
    past = datetime.now(UTC) - timedelta(seconds=1)
    ring = KeyRing(_write(tmp_path / "keys.yaml", _entry("k", expires=past)), Metrics())
    with pytest.raises(ApiError, match=rf"expired at {past:%Y-%m-%d}"):
        ring.caller_of("k")


def test_a_changed_file_is_read_again(tmp_path):
    path = _write(tmp_path / "keys.yaml", _entry("old"))
    ring = KeyRing(path, Metrics())
    _write(path, _entry("new", name="team-b"))
    ring.reload_if_changed()
    assert ring.caller_of("new").name == "team-b"
    with pytest.raises(ApiError):
        ring.caller_of("old")


@pytest.mark.parametrize("text", ["keys: [{", "keys: [{expires: 2027-02-31}]"], ids=["no YAML", "no such day"])
def test_a_file_that_became_unreadable_leaves_the_keys_in_force(tmp_path, text):
    path = _write(tmp_path / "keys.yaml", _entry("k"))
    ring = KeyRing(path, metrics := Metrics())
    path.write_text(text)
    ring.reload_if_changed()
    assert ring.caller_of("k").name == "team-a"
    assert b'irlops_gateway_reloads_total{outcome="failed",what="keys"} 1.0' in metrics.render()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("keys: [{", "is not YAML"),
        ("keys: [{name: a, sha256: plaintext-key}]", "sha256"),
        (f"keys: [{{name: a, sha256: {'ab' * 32}, modles: [policy]}}]", "modles"),
        (f"keys: [{{name: a, sha256: {'ab' * 32}, expires: 2027-01-01T00:00:00}}]", "expires"),
        (f"keys: [{{name: a, sha256: {'ab' * 32}}}, {{name: b, sha256: {'ab' * 32}}}]", "under two names"),
    ],
    ids=["not YAML", "a key that is not hashed", "a mistyped field", "a date without a zone", "one key twice"],
)
def test_a_wrong_key_file_is_refused_with_the_place(tmp_path, content, said):
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_key_file(path)


def test_a_missing_key_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        read_key_file(tmp_path / "none.yaml")


def test_the_command_prints_an_entry_that_the_file_takes_and_the_key_apart_from_it(tmp_path, capsys):
    assert main(["--name", "team-a", "--models", "policy,reranked", "--expires", "2099-01-01T00:00:00Z"]) == 0
    printed = capsys.readouterr()
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n" + printed.out)
    key = printed.err.split()[-1]
    assert read_key_file(path)[hash_key(key)].models == frozenset({"policy", "reranked"})
    assert key not in printed.out


def test_two_keys_are_never_the_same():
    assert make_key("a")[0] != make_key("a")[0]
