"""Registering, promoting and rolling back pairs, against a real MLflow store."""

from __future__ import annotations

import json
import threading
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from irlops.contracts.pair import CRITIC_MODEL, POLICY_MODEL, Gate, Pair, PairLineage
from irlops.errors import PairError, UnavailableError
from irlops.registry.aliases import aliases_of
from irlops.registry.client import open_client
from irlops.registry.pairs import PairRegistry
from irlops.registry.weights import fetch_pair, kserve_storage_uri
from support.mlflow_store import BreakingClient, empty_mlflow_database, tracking_uri  # noqa: F401 - fixtures
from support.pair_folders import WORDS, evaluation_body, write_critic, write_pair, write_policy

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")


@pytest.fixture
def registry(tracking_uri: str) -> PairRegistry:  # noqa: F811
    clock = count(1_780_000_000_000)
    return PairRegistry(tracking_uri, now_ms=lambda: next(clock))


def register(registry: PairRegistry, folder: Path, weights: int = 0, **options: Any) -> Pair:
    policy, critic = write_pair(folder / f"run-{weights}", weights=weights)
    return registry.register(policy, critic, **options)


def aliases(registry: PairRegistry) -> tuple[dict[str, int], dict[str, int]]:
    client = open_client(registry.tracking_uri)
    return aliases_of(client, POLICY_MODEL), aliases_of(client, CRITIC_MODEL)


def broken(registry: PairRegistry, method: str, nth: int, until: int = 10**9) -> PairRegistry:
    """The registry over a connection that is gone from the ``nth`` call of ``method`` up to the ``until``-th."""
    calls = count(1)
    client = BreakingClient(
        open_client(registry.tracking_uri), lambda name, _: name == method and nth <= next(calls) < until
    )
    return PairRegistry(registry.tracking_uri, client=client)  # type: ignore[arg-type]


def test_both_halves_are_registered_together_and_name_each_other(registry: PairRegistry, tmp_path: Path) -> None:
    lineage = PairLineage(run_name="airl-tiny", data_digest="sha256:d0", policy_base_model="tiny", git_commit="abc")
    pair = register(registry, tmp_path, evaluation=evaluation_body(), lineage=lineage)
    tags = open_client(registry.tracking_uri).get_model_version(CRITIC_MODEL, "1").tags
    assert (pair.policy.version, pair.critic.version) == (1, 1)
    assert (tags["pair_policy_version"], tags["pair_critic_version"]) == ("1", "1")
    assert (tags["data_digest"], tags["git_commit"], tags["tokenizer_digest"]) == (
        "sha256:d0",
        "abc",
        pair.tokenizer_digest,
    )
    assert registry.list() == [pair]
    assert pair.evaluation is not None
    assert pair.evaluation.metrics["critic.auroc"] == 0.8


def test_versions_of_a_pair_need_not_be_equal_numbers(registry: PairRegistry, tmp_path: Path) -> None:
    client = open_client(registry.tracking_uri)
    client.create_registered_model(CRITIC_MODEL)
    client.create_model_version(CRITIC_MODEL, "s3://elsewhere/critic")
    pair = register(registry, tmp_path)
    assert (pair.policy.version, pair.critic.version) == (1, 2)
    assert registry.promote("1").critic.version == 2
    assert aliases(registry) == ({"champion": 1}, {"champion": 2})


def test_a_registered_pair_outlives_the_folder_it_came_from(registry: PairRegistry, tmp_path: Path) -> None:
    pair = register(registry, tmp_path, weights=1)
    write_pair(tmp_path / "run-1", weights=9)  # the next run of that name writes over it
    fetched = fetch_pair(registry.resolve("v1"), tmp_path / "cache", registry.tracking_uri)
    assert fetched.policy.weights_digest == pair.policy.weights_digest
    assert fetched.policy.local_path == pair.policy.local_path != tmp_path / "run-1/policy"


def test_a_calibration_made_later_reaches_the_next_pair(registry: PairRegistry, tmp_path: Path) -> None:
    first = register(registry, tmp_path, weights=1)
    policy, critic = tmp_path / "run-1/policy", tmp_path / "run-1/critic"
    (critic / "calibration.json").write_text("{}")
    second = registry.register(policy, critic, lineage=PairLineage(run_id=first.lineage.run_id))
    assert second.critic.local_path is not None
    assert (second.critic.local_path / "calibration.json").exists()
    assert second.critic.weights_digest == first.critic.weights_digest


def test_a_run_s_folder_tells_what_the_pair_was_made_from(registry: PairRegistry, tmp_path: Path) -> None:
    write_pair(tmp_path / "airl-tiny")
    for half in ("policy", "critic"):
        lineage = {"run_name": "airl-tiny", "base_model": f"tiny {half}", "data_digest": "sha256:d0", "seed": 0}
        (tmp_path / "airl-tiny" / half / "lineage.json").write_text(json.dumps(lineage))
    (tmp_path / "airl-tiny/mlflow-run.json").write_text(json.dumps({"run_id": "0" * 32}))  # of another server
    found = registry.register_run(tmp_path / "airl-tiny").lineage
    assert (found.run_name, found.data_digest) == ("airl-tiny", "sha256:d0")
    assert (found.policy_base_model, found.critic_base_model) == ("tiny policy", "tiny critic")
    assert found.run_id != "0" * 32


def test_weights_that_somebody_wrote_over_are_refused(registry: PairRegistry, tmp_path: Path) -> None:
    pair = register(registry, tmp_path, weights=1)
    assert pair.critic.local_path is not None
    write_critic(pair.critic.local_path, weights=2)
    with pytest.raises(PairError, match="not what was registered as v1"):
        fetch_pair(registry.resolve("v1"), tmp_path / "cache", registry.tracking_uri)


def test_weights_registered_by_uri_are_not_copied(registry: PairRegistry, tmp_path: Path) -> None:
    uris = {"policy_uri": "pvc://state/airl/policy", "critic_uri": "s3://bucket/airl/critic/"}
    pair = register(registry, tmp_path, **uris)
    assert (pair.policy.uri, pair.critic.uri) == ("pvc://state/airl/policy", "s3://bucket/airl/critic")
    assert kserve_storage_uri(pair.policy) == "pvc://state/airl/policy"


def test_a_pair_on_a_mounted_claim_is_read_from_the_mount(
    registry: PairRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = {"policy_uri": "pvc://state/run-0/policy", "critic_uri": "pvc://state/run-0/critic"}
    pair = register(registry, tmp_path, **uris)
    monkeypatch.setenv("IRLOPS_PVC_MOUNTS", f"state={tmp_path}")
    assert fetch_pair(pair, tmp_path, registry.tracking_uri).critic.local_path == tmp_path / "run-0/critic"


@pytest.mark.parametrize("uri", ["file:///tmp/policy", "ftp://host/policy", "s3://u:secret@host/x", "s3://b/../x"])
def test_a_uri_that_nobody_can_serve_from_is_refused(registry: PairRegistry, tmp_path: Path, uri: str) -> None:
    with pytest.raises(PairError):
        register(registry, tmp_path, policy_uri=uri)
    assert registry.list() == []


def test_a_local_pair_is_refused_for_kserve_with_what_to_do(registry: PairRegistry, tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"KServe can't load.*--policy-uri pvc://CLAIM/PATH"):
        kserve_storage_uri(register(registry, tmp_path).policy)


def test_different_tokenizers_register_nothing(registry: PairRegistry, tmp_path: Path) -> None:
    policy = write_policy(tmp_path / "policy")
    critic = write_critic(tmp_path / "critic", words=(*WORDS, "four"))
    with pytest.raises(PairError, match="different tokenizers"):
        registry.register(policy, critic)
    assert registry.list() == []


def test_a_failed_gate_registers_nothing(registry: PairRegistry, tmp_path: Path) -> None:
    gate = Gate(metric="critic.auroc", minimum=0.9)
    with pytest.raises(PairError, match=r"was not registered: critic.auroc is 0.8, below 0.9"):
        register(registry, tmp_path, evaluation=evaluation_body(auroc=0.8), gates=[gate])
    assert registry.list() == []


def test_a_pair_without_an_evaluation_does_not_pass_a_gate(registry: PairRegistry, tmp_path: Path) -> None:
    register(registry, tmp_path)
    with pytest.raises(PairError, match="has no evaluation"):
        registry.promote("1", gates=[Gate(metric="critic.auroc", minimum=0.5)])
    registry.record_evaluation("1", evaluation_body(auroc=0.6))
    assert registry.promote("1", gates=[Gate(metric="critic.auroc", minimum=0.5)]).aliases == ("champion",)


@pytest.mark.parametrize("nth", [1, 2], ids=["at the policy", "at the critic"])
def test_a_registration_that_breaks_off_leaves_no_half_behind(registry: PairRegistry, tmp_path: Path, nth: int) -> None:
    with pytest.raises(UnavailableError, match="Registering the pair failed"):
        register(broken(registry, "create_model_version", nth), tmp_path)
    assert (registry.list(), registry.problems()) == ([], [])


def test_a_half_whose_process_died_is_never_resolved_and_is_named(registry: PairRegistry, tmp_path: Path) -> None:
    whole = register(registry, tmp_path)
    client = open_client(registry.tracking_uri)
    client.create_model_version(POLICY_MODEL, whole.policy.uri)  # died before the critic
    assert registry.list() == [whole]
    assert "v2 has no critic beside it" in registry.problems()[0]
    with pytest.raises(PairError, match="v2 has no critic beside it"):
        registry.promote("2")


def test_a_pair_is_found_by_alias_version_run_and_folder(registry: PairRegistry, tmp_path: Path) -> None:
    pair = register(registry, tmp_path, alias="challenger")
    found = [registry.resolve(ref) for ref in ("challenger", "v1", f"run:{pair.lineage.run_id}")]
    assert [each.policy.version for each in found] == [1, 1, 1]
    unregistered = registry.resolve(str(tmp_path / "run-0"))
    assert not unregistered.is_registered
    assert unregistered.policy.weights_digest == pair.policy.weights_digest


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ("champion", r"No pair is champion.*irlops pairs promote REF"),
        ("9", "has no version 9"),
        ("run:" + "0" * 32, "registered no pair"),
    ],
)
def test_a_reference_to_nothing_says_what_to_do(registry: PairRegistry, tmp_path: Path, ref: str, reason: str) -> None:
    register(registry, tmp_path)
    with pytest.raises(PairError, match=reason):
        registry.resolve(ref)


def test_an_empty_registry_has_no_pairs_and_no_problems(registry: PairRegistry) -> None:
    assert (registry.list(), registry.problems(), registry.promotions()) == ([], [], [])
    with pytest.raises(PairError, match="No pair is champion"):
        registry.rollback()
    with pytest.raises(PairError, match=r"No pair is registered in .* yet\. `irlops demo` makes a first one"):
        registry.resolve("champion")


def test_promotion_moves_the_alias_on_both_halves(registry: PairRegistry, tmp_path: Path) -> None:
    for weights in (1, 2):
        register(registry, tmp_path, weights)
    registry.promote("1")
    assert registry.promote("2").aliases == ("champion",)
    assert aliases(registry) == ({"champion": 2}, {"champion": 2})


def test_a_challenger_that_becomes_champion_is_no_challenger_any_more(registry: PairRegistry, tmp_path: Path) -> None:
    register(registry, tmp_path, alias="challenger")
    registry.promote("challenger")
    assert aliases(registry) == ({"champion": 1}, {"champion": 1})


@pytest.mark.parametrize("nth", [1, 2], ids=["before the critic's alias", "between the two aliases"])
def test_a_promotion_that_breaks_off_leaves_both_aliases_where_they_were(
    registry: PairRegistry, tmp_path: Path, nth: int
) -> None:
    for weights in (1, 2):
        register(registry, tmp_path, weights)
    registry.promote("1")
    with pytest.raises(UnavailableError):
        broken(registry, "set_registered_model_alias", nth, until=nth + 1).promote("2")
    assert aliases(registry) == ({"champion": 1}, {"champion": 1})


def test_a_torn_alias_never_reaches_a_reader_and_is_repaired(registry: PairRegistry, tmp_path: Path) -> None:
    for weights in (1, 2):
        register(registry, tmp_path, weights)
    registry.promote("1")
    with pytest.raises(UnavailableError, match="irlops pairs repair"):
        broken(registry, "set_registered_model_alias", 2).promote("2")  # and the server stays away
    assert aliases(registry) == ({"champion": 1}, {"champion": 2})
    assert registry.resolve("champion").critic.version == 1
    assert "champion stands on irlops-critic v2" in registry.problems()[0]
    assert registry.repair() == ["champion"]
    assert aliases(registry) == ({"champion": 1}, {"champion": 1})


def test_promotions_at_the_same_time_leave_one_whole_champion(registry: PairRegistry, tmp_path: Path) -> None:
    for weights in (1, 2, 3):
        register(registry, tmp_path, weights)
    start = threading.Barrier(3)

    def promote(version: int) -> None:
        mine = PairRegistry(registry.tracking_uri)
        start.wait()
        for _ in range(4):
            mine.promote(str(version))

    threads = [threading.Thread(target=promote, args=(version,)) for version in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    on_policy, on_critic = aliases(registry)
    assert on_policy == on_critic
    assert registry.problems() == []


def test_rolling_back_walks_through_earlier_champions(registry: PairRegistry, tmp_path: Path) -> None:
    for weights in (1, 2, 3):
        register(registry, tmp_path, weights)
        registry.promote(str(weights))
    assert [registry.rollback().policy.version for _ in range(2)] == [2, 1]
    assert aliases(registry) == ({"champion": 1}, {"champion": 1})
    with pytest.raises(PairError, match="No pair was champion before v1"):
        registry.rollback()


def test_rolling_back_never_returns_to_what_was_rolled_back(registry: PairRegistry, tmp_path: Path) -> None:
    for weights in (1, 2, 3):
        register(registry, tmp_path, weights)
        registry.promote(str(weights))
    registry.rollback()  # 3 -> 2
    register(registry, tmp_path, 4)
    registry.promote("4")
    assert registry.rollback().policy.version == 2
    assert [promotion.version for promotion in registry.promotions() if promotion.is_rolled_back] == [3, 4]


def test_a_champion_set_by_hand_in_mlflow_is_followed_and_can_be_rolled_back(
    registry: PairRegistry, tmp_path: Path
) -> None:
    for weights in (1, 2):
        register(registry, tmp_path, weights)
    registry.promote("1")
    open_client(registry.tracking_uri).set_registered_model_alias(POLICY_MODEL, "champion", "2")
    assert registry.resolve("champion").critic.version == 2
    assert registry.rollback().policy.version == 1


def test_a_pair_whose_files_were_deleted_is_not_promoted(registry: PairRegistry, tmp_path: Path) -> None:
    pair = register(registry, tmp_path)
    assert pair.policy.local_path is not None
    pair.policy.local_path.rename(tmp_path / "moved away")
    with pytest.raises(PairError, match="policy of v1 is gone"):
        registry.promote("1")


def test_an_unregistered_folder_is_not_promoted(registry: PairRegistry, tmp_path: Path) -> None:
    write_pair(tmp_path / "run")
    with pytest.raises(PairError, match="is not registered"):
        registry.promote(str(tmp_path / "run"))
