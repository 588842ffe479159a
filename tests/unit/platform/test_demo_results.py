"""The numbers at the demo's end: summary.json, the final table, one sentence for each stage."""

from __future__ import annotations

import json
from pathlib import Path

from irlops.contracts.evaluation import Estimate
from irlops.contracts.summary import Summary
from irlops.demo.results import describe_airl, describe_sft, half_width, percent, table_rows
from support.demo_results import evaluation, summary


def test_summary_json_has_the_published_keys_and_reads_back() -> None:
    text = summary().to_json()
    body = json.loads(text)
    assert list(body) == [
        "schema", "seed", "wall_s", "peak_rss_mib", "stages", "pair", "urls", "evaluations", "answer"
    ]  # fmt: skip
    assert (body["schema"], body["stages"]) == (1, [{"name": "sft", "wall_s": 61.2}])
    assert list(body["urls"]) == ["gateway", "mlflow"]
    assert list(body["evaluations"]) == ["untrained", "sft", "airl"]
    assert body["evaluations"]["airl"]["pass_at_k"]["1"]["mean"] == 0.6
    assert list(body["answer"]) == ["question", "text", "correct", "rerank"]
    assert Summary.model_validate_json(text) == summary()


def test_the_table_goes_from_the_untrained_policy_to_the_learned_one() -> None:
    untrained, sft, airl = table_rows(summary().evaluations)
    assert [row.title for row in (untrained, sft, airl)] == ["untrained", "SFT", "AIRL"]
    assert (airl.pass_at_1.mean, airl.selected["random"].mean, airl.selected["weighted_majority"].mean) == (
        0.6,
        0.6,
        0.75,
    )
    assert airl.auroc == 0.8


def test_a_number_that_is_not_defined_stays_undefined() -> None:
    rows = table_rows(dict.fromkeys(("untrained", "sft", "airl"), evaluation(0.5, auroc=None)))
    assert (rows[0].auroc, percent(None)) == (None, "-")


def test_half_of_an_interval_is_told_in_points() -> None:
    assert half_width(Estimate(mean=0.6, ci95=(0.58, 0.64))) == "±3.0"  # (64 - 58) / 2
    assert (half_width(Estimate(mean=0.6)), percent(0.4125)) == ("", "41.2 %")


def test_the_warm_start_is_its_first_and_last_loss(tmp_path: Path) -> None:
    rows = [{"step": 1, "sft/loss": 4.714}, {"step": 2, "sft/loss": 2.0}, {"step": 3, "sft/loss": 0.618}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "cut')
    assert describe_sft(tmp_path) == "loss 4.71 → 0.62 nats per token"


def test_learning_is_what_changed_on_held_out_questions(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "dev/accuracy": 0.38, "dev/auroc": 0.61},
        {"step": 1, "rollout/accuracy": 0.9},
        {"step": 2, "dev/accuracy": 0.55, "dev/auroc": 0.823, "collapse/rolled_back": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = describe_airl(tmp_path)
    assert told.startswith("held-out questions: right 38% → 55%, critic AUROC 0.61 → 0.82, ")
    assert "rolled back" in told


def test_a_run_without_metrics_has_nothing_to_tell(tmp_path: Path) -> None:
    assert (describe_sft(tmp_path), describe_airl(tmp_path)) == ("", "")
