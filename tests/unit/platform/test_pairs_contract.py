"""References to pairs, summaries of evaluations, gates."""

from __future__ import annotations

import math

import pytest

from irlops.contracts.pair import Gate, PairHalf, failed_gates, parse_gate, parse_reference, summarise_evaluation
from irlops.errors import PairError
from support.pair_folders import evaluation_body

RUN_ID = "0f" * 16


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("champion", "alias", "champion"),
        (" challenger ", "alias", "challenger"),
        ("7", "version", "7"),
        ("v12", "version", "12"),
        (f"run:{RUN_ID}", "run", RUN_ID),
        (RUN_ID, "run", RUN_ID),
        ("./out/airl", "folder", "./out/airl"),
        ("/data/airl", "folder", "/data/airl"),
    ],
)
def test_a_reference_is_an_alias_a_version_a_run_or_a_folder(text: str, kind: str, value: str) -> None:
    reference = parse_reference(text)
    assert (reference.kind, reference.value) == (kind, value)


@pytest.mark.parametrize("text", ["", "best", "v0", "-1", "7.5", "s3://bucket/policy", "run:xyz"])
def test_anything_else_is_refused_with_the_four_kinds(text: str) -> None:
    with pytest.raises(PairError, match=r"names no pair\. Write champion, challenger, a policy version"):
        parse_reference(text)


def test_an_evaluation_is_summarised_by_the_paths_of_its_numbers() -> None:
    summary = summarise_evaluation(evaluation_body(pass_at_1=0.25))
    assert summary.metrics == {
        "pass_at_k.1": 0.25,
        "selectors.reward.1": 0.25,
        "selectors.reward.16": 0.7,
        "critic.auroc": 0.8,
        "critic.ece": 0.05,
    }
    assert (summary.dataset, summary.num_problems, summary.samples_per_problem) == ("arithmetic", 100, 16)


@pytest.mark.parametrize("body", [{}, {"dataset": {"name": "x"}}, {"critic": {"auroc": 0.9}}])
def test_what_is_no_evaluation_is_refused(body: dict) -> None:
    with pytest.raises(PairError, match="not an evaluation"):
        summarise_evaluation(body)


def test_a_gate_passes_at_its_bound_and_fails_beyond_it() -> None:
    summary = summarise_evaluation(evaluation_body(auroc=0.75))
    assert failed_gates(summary, [Gate(metric="critic.auroc", minimum=0.75)]) == []
    assert failed_gates(summary, [Gate(metric="critic.auroc", minimum=0.76)]) == ["critic.auroc is 0.75, below 0.76"]
    assert failed_gates(summary, [Gate(metric="critic.ece", maximum=0.01)]) == ["critic.ece is 0.05, above 0.01"]


@pytest.mark.parametrize("auroc", [math.nan, math.inf, None], ids=["nan", "infinity", "null"])
def test_a_number_that_is_none_never_passes_a_gate(auroc: float | None) -> None:
    summary = summarise_evaluation(evaluation_body(auroc=auroc))
    assert failed_gates(summary, [Gate(metric="critic.auroc", minimum=0.0)]) == ["critic.auroc is not a finite number"]


def test_a_gate_without_an_evaluation_or_on_a_missing_number_fails() -> None:
    gate = Gate(metric="critic.spread", minimum=0.1)
    assert failed_gates(None, [gate]) == ["critic.spread is asked for, but the pair has no evaluation"]
    assert failed_gates(summarise_evaluation(evaluation_body()), [gate])[0].startswith("critic.spread is not in the")


def test_gates_are_written_as_comparisons() -> None:
    assert parse_gate("critic.auroc>=0.75") == Gate(metric="critic.auroc", minimum=0.75)
    assert parse_gate("critic.ece <= 1e-1") == Gate(metric="critic.ece", maximum=0.1)
    with pytest.raises(PairError, match="not a gate"):
        parse_gate("critic.auroc>0.75")


def test_only_folders_have_a_local_path() -> None:
    paths = [
        PairHalf(role="policy", uri=uri).local_path
        for uri in ("/a/b", "file:///a/b", "s3://bucket/b", "mlflow-artifacts:/1/b", "pvc://claim/b")
    ]
    assert [str(path) if path else None for path in paths] == ["/a/b", "/a/b", None, None, None]


def test_a_gate_reads_any_named_number_of_an_evaluation():
    body = evaluation_body() | {"differences": {"pass@1-sft": {"mean": 0.06}}, "strict": {"pass_at_1": {"mean": 0.4}}}
    gates = [parse_gate("differences.pass@1-sft>=0.05"), parse_gate("strict.pass_at_1>=0.5")]
    assert failed_gates(summarise_evaluation(body), gates) == ["strict.pass_at_1 is 0.4, below 0.5"]


def test_a_misspelt_gate_is_told_the_names_closest_to_it():
    body = evaluation_body() | {"samples": {f"kind_{number}": number for number in range(20)}}
    (reason,) = failed_gates(summarise_evaluation(body), [parse_gate("critic.aurok>=0.5")])
    assert "(it has critic.auroc, " in reason
    assert reason.endswith("others)")
