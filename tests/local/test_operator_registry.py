"""The operator's small MLflow client and the registration's program, against a real MLflow."""

import json

import pytest

from irlops.contracts.pair import Gate
from irlops.errors import PairError, UnavailableError
from irlops.operator import registration
from irlops.operator.registry import MlflowRegistry
from irlops.registry.pairs import PairRegistry
from support.mlflow_server import mlflow_server  # noqa: F401 - a fixture
from support.pair_folders import evaluation_body, write_pair

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")]

CALIBRATION = {"schema": 1, "aggregation": "last", "temperature": 2.0, "bias": 0.5, "gamma": 0.9}


@pytest.fixture
def registered(mlflow_server, tmp_path, monkeypatch):  # noqa: F811
    """Registers the run of a name as the pod would; returns the exit code."""

    def register(run, *, weights=0):
        write_pair(tmp_path / run, weights=weights)
        evaluation = tmp_path / f"{run}-evaluation" / "evaluation" / "evaluation.json"
        evaluation.parent.mkdir(parents=True, exist_ok=True)
        evaluation.write_text(json.dumps(evaluation_body() | {"calibration": CALIBRATION}))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        monkeypatch.setenv("IRLOPS_STATE_DIR", str(tmp_path))
        path = evaluation.relative_to(tmp_path)
        return registration.main([f"--run={run}", f"--evaluation={path}", "--claim=tiny-state"])

    return register


@pytest.fixture
def registry(mlflow_server):  # noqa: F811
    return MlflowRegistry(mlflow_server.uri)


def test_what_the_pod_registers_the_operator_finds_by_its_run(registered, registry):
    assert registered("tiny-a-airl") == 0
    pair = registry.pair_of_run("tiny-a-airl")
    assert pair.policy_uri == "pvc://tiny-state/tiny-a-airl/policy"
    assert pair.policy_tokenizer == pair.critic_tokenizer != ""
    assert pair.evaluation.metrics["critic.auroc"] == 0.8
    assert pair.calibration["temperature"] == 2.0


def test_a_registration_that_runs_twice_registers_once(registered, registry):
    registered("tiny-b-airl")
    first = registry.pair_of_run("tiny-b-airl")
    assert registered("tiny-b-airl") == 0
    assert registry.pair_of_run("tiny-b-airl") == first


def test_halves_of_different_tokenizers_end_with_a_permanent_code(registered, tmp_path, capsys):
    registered("tiny-c-airl")
    write_pair(tmp_path / "tiny-d-airl")
    config = tmp_path / "tiny-d-airl" / "critic" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<end>"}))
    arguments = ["--run=tiny-d-airl", "--evaluation=tiny-c-airl-evaluation/evaluation/evaluation.json", "--claim=c"]
    assert registration.main(arguments) == 2
    assert "different tokenizers" in capsys.readouterr().err


def test_the_alias_moves_on_both_halves_and_its_return_is_a_rollback(registered, registry, mlflow_server):  # noqa: F811
    for index, run in enumerate(("tiny-e-airl", "tiny-f-airl")):
        registered(run, weights=index)
    old, new = (registry.pair_of_run(run).policy_version for run in ("tiny-e-airl", "tiny-f-airl"))
    registry.move_alias("champion", old, is_return=False)
    registry.move_alias("champion", new, is_return=False)
    ours = PairRegistry(mlflow_server.uri)
    assert ours.resolve("champion").policy.version == new
    registry.move_alias("champion", old, is_return=True)
    assert registry.aliases()["champion"] == old
    assert [promotion.is_rolled_back for promotion in ours.promotions() if promotion.version == new] == [True]
    assert ours.problems() == []


def test_a_gate_that_passes_here_passes_for_people_too(registered, registry, mlflow_server):  # noqa: F811
    registered("tiny-g-airl")
    version = registry.pair_of_run("tiny-g-airl").policy_version
    PairRegistry(mlflow_server.uri).promote(f"v{version}", gates=[Gate(metric="critic.auroc", minimum=0.8)])
    assert registry.aliases()["champion"] == version


def test_a_version_that_does_not_exist_is_no_pair(registry):
    with pytest.raises(PairError, match="no whole pair v9999"):
        registry.pair(9999)


def test_a_server_that_does_not_answer_is_unavailable():
    with pytest.raises(UnavailableError, match="does not answer"):
        MlflowRegistry("http://127.0.0.1:9").aliases()
