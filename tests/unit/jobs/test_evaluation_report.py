"""What an evaluation leaves: files, the critic's calibration, the page and its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from irlops.contracts.evaluation import Calibration, DatasetFacts, Evaluation
from irlops.contracts.jobs import EvaluateJob, JobEnvironment, parse_job
from irlops_jobs.evaluation import figures
from irlops_jobs.evaluation.carriers import CorruptedTrace, ScoredProblem, ScoredSample
from irlops_jobs.evaluation.heatmaps import pick_passages, token_heatmaps
from irlops_jobs.evaluation.measure import Measured, measure
from irlops_jobs.evaluation.pictures import draw_training
from irlops_jobs.evaluation.publish import publish_evaluations, table_lines
from irlops_jobs.evaluation.style import save
from irlops_jobs.models.tiny import build_tiny_tokenizer
from irlops_jobs.session import Session, open_session
from support.scored_samples import problem, sample, trace

DEGENERATE = {
    "all right": problem(sample("5", 1.0), sample("5", 2.0)),
    "all wrong": problem(sample("6", 1.0), sample("6", 1.0)),
    "empty": problem(sample(None), sample(None)),
}


def spelled(text: str, answer: str, low: float) -> ScoredSample:
    """A solution in the tiny tokenizer's tokens, the last of which has a low reward."""
    ids: list[int] = build_tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]  # pyright: ignore
    rewards = (1.0,) * (len(ids) - 1) + (low,)
    return ScoredSample(
        text, answer, len(ids), rewards, (-0.1,) * len(ids), False, (len(ids) - 1, len(ids)), tuple(ids)
    )


def solved() -> list[ScoredProblem]:
    right, wrong = spelled("2+3=5\n#### 5", "5", 1.0), spelled("2+3=6\n#### 6", "6", -2.0)
    return [problem(right, wrong, right, wrong), problem(wrong, wrong, right, wrong)]


def corrupted() -> list[CorruptedTrace]:
    one = spelled("2+3=6", "6", -2.0)
    last = one.num_tokens - 1
    return [CorruptedTrace(one.token_rewards, one.token_logprobs, last, last + 1, one.num_tokens, one.token_ids)]


def measured(problems: list[ScoredProblem]) -> Measured:
    facts = DatasetFacts(name="arithmetic", num_problems=len(problems))
    return measure(problems, Calibration(), row="airl", dataset=facts, seed=0, num_resamples=100)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    (tmp_path / "airl-x" / "critic").mkdir(parents=True)
    rows = [{"step": step, "reward/right": 1.0, "reward/wrong": -1.0, "dev/accuracy": 0.5} for step in (1, 2)]
    (tmp_path / "airl-x" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_session(the_job(), JobEnvironment(state_dir=tmp_path)) as opened:
        yield opened


def the_job(**changes: Any) -> EvaluateJob:
    document = {
        "kind": "evaluate",
        "run_name": "evaluate-x",
        "data": {"name": "arithmetic", "num_train": 8, "num_dev": 8, "num_test": 2},
        "model": {"policy_from": "airl-x/policy", "critic_from": "airl-x/critic", **changes},
        "compare": {"untrained": None},
        "bootstrap_resamples": 100,
    }
    job = parse_job(document, origin="the test's job")
    assert isinstance(job, EvaluateJob)
    return job


def publish(session: Session, job: EvaluateJob) -> dict[str, Evaluation]:
    return publish_evaluations(
        session,
        job,
        dev=solved(),
        rows={"untrained": [DEGENERATE["all wrong"]] * 2, "airl": solved()},
        corrupted_dev=corrupted(),
        corrupted=corrupted(),
        tokenizer=build_tiny_tokenizer(),
    )


def test_every_row_and_the_pair_leave_a_file(session: Session):
    evaluations = publish(session, the_job())
    folder = session.run_dir / "evaluation"
    for row in ("airl", "untrained"):
        assert Evaluation.model_validate_json((folder / f"evaluation-{row}.json").read_bytes()) == evaluations[row]
    pair = Evaluation.model_validate_json((folder / "evaluation.json").read_bytes())
    assert pair == evaluations["airl"]
    assert (pair.pair["policy"], pair.pair["critic"]) == ("airl-x/policy", "airl-x/critic")
    assert pair.dataset.digest == session.demonstrations.digests["test"]
    assert (pair.transfer["untrained"].auroc, evaluations["untrained"].transfer) == (None, {})
    assert evaluations["untrained"].pair["policy"] == "preset tiny, untrained"


def test_the_calibration_lies_beside_the_critic_that_a_run_here_trained(session: Session):
    evaluations = publish(session, the_job())
    found = (session.environment.state_dir / "airl-x" / "critic" / "calibration.json").read_bytes()
    assert Calibration.model_validate_json(found) == evaluations["airl"].calibration


def test_a_critic_elsewhere_is_left_as_it_is(session: Session, tmp_path: Path):
    critic = tmp_path / "registered" / "critic"
    critic.mkdir(parents=True)
    publish(session, the_job(critic_from=str(critic)))
    assert list(critic.iterdir()) == []
    assert (session.run_dir / "evaluation" / "calibration.json").is_file()


def test_the_page_holds_everything_and_fetches_nothing(session: Session):
    publish(session, the_job())
    page = (session.run_dir / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=(?!.data:)", page)
    assert not re.search(r"url\(|@import|<script", page)
    assert page.count("data:image/png;base64,") == 7
    assert "prefers-color-scheme: dark" in page


def test_the_page_shows_numbers_with_their_intervals(session: Session):
    evaluation = publish(session, the_job())["airl"]
    page = (session.run_dir / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert evaluation.pass_at_k[1].mean == 0.375  # (2/4 + 1/4) / 2
    assert "<td>37.5<small>25.0 to 50.0</small></td>" in page
    assert "not defined" in page  # the untrained row's AUROC


def test_words_from_a_job_file_are_text_and_not_markup(session: Session):
    publish(session, the_job(policy_from="<b>x</b>"))
    page = (session.run_dir / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<b>x</b>" not in page


def test_the_table_for_the_log_ends_with_the_pair(session: Session):
    lines = table_lines(publish(session, the_job()), "airl")
    assert [line.split()[0] for line in lines] == ["pass@1", "untrained", "airl"]
    assert lines[1].split()[1:] == ["0.0", "±0.0", "0.0", "0.0", "0.0", "0.0", "at", "2.0", "-"]


@pytest.mark.parametrize("name", DEGENERATE)
def test_every_picture_can_be_drawn_of_samples_that_define_little(name: str, tmp_path: Path):
    one = measured([DEGENERATE[name]] * 2)
    drawn: list[Figure] = [
        figures.reward_distributions(one),
        figures.selector_curves(one.evaluation),
        figures.correlations(one.evaluation),
        figures.calibration_curve(one.evaluation),
        figures.samples_against_accuracy(one.evaluation),
        token_heatmaps(
            pick_passages([DEGENERATE[name]], [[True, True]], [], build_tiny_tokenizer(), "lowest"), centre=0.0
        ),
    ]
    for number, figure in enumerate(drawn):
        assert save(figure, tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_heatmaps_show_the_first_problem_with_both_and_mark_the_known_error():
    problems = [DEGENERATE["all right"], *solved()]
    passages = pick_passages(
        problems, [[True, True], [True, False, True, False], [False] * 4], corrupted(), build_tiny_tokenizer(), "lowest"
    )
    assert [passage.title.partition(":")[0] for passage in passages[:2]] == [
        "Policy's solution, right",
        "Policy's solution, wrong",
    ]
    last = len(passages[2].tokens) - 1
    assert (passages[2].known_error, passages[2].guess) == ((last, last + 1), last)
    assert "".join(passages[2].tokens) == "2+3=6"


def test_heatmaps_frame_the_first_error_of_a_wrong_sample_where_the_one_right_solution_is_known():
    first, second = solved()
    known = [replace(one, only_solution_ids=one.samples[0].token_ids) for one in (first, second)]
    right, wrong = pick_passages(known, [[True, False, True, False], [False] * 4], [], build_tiny_tokenizer(), "lowest")
    assert right.known_error is None
    assert wrong.known_error == (4, 5)  # "2+3=6" in place of "2+3=5"
    assert wrong.tokens[4] == "6"


def test_training_curves_leave_out_what_a_run_did_not_record(tmp_path: Path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "reward/right": 1.0}\n{"step": 2, "reward/right": NaN}\n{"step": 3, "rew')
    picture = draw_training(metrics, tmp_path)
    assert picture is not None
    assert picture.path.stat().st_size > 1000


def test_without_metrics_there_is_no_training_picture(tmp_path: Path):
    assert draw_training(tmp_path / "metrics.jsonl", tmp_path) is None


def test_a_trace_of_another_length_than_its_numbers_is_refused_before_anything_is_written(session: Session):
    broken = trace([1.0, float("inf")], (0, 1))
    with pytest.raises(Exception, match="corrupted trace 0: token 1 of its rewards is inf"):
        publish_evaluations(
            session, the_job(), dev=solved(), rows={"airl": solved()}, corrupted_dev=[], corrupted=[broken],
            tokenizer=build_tiny_tokenizer(),
        )  # fmt: skip
    assert not (session.run_dir / "evaluation").exists()
