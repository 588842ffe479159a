"""What the demo's stages leave, made by hand: evaluations with chosen numbers, and a whole summary."""

from __future__ import annotations

from irlops.contracts.evaluation import (
    AggregationNumbers,
    Calibration,
    CriticNumbers,
    DatasetFacts,
    Estimate,
    Evaluation,
    SampleCounts,
    StrictRule,
)
from irlops.contracts.pair import Pair, PairHalf
from irlops.contracts.rerank import AnswerVotes, PairVersions, RerankCandidate, RerankResult, RerankTimings
from irlops.contracts.summary import DemoAnswer, StageTime, Summary, SummaryUrls

SELECTORS = ("random", "reward", "majority", "weighted_majority", "longest", "logprob")


def evaluation(pass_at_1: float, *, chosen: float | None = None, auroc: float | None = 0.8) -> Evaluation:
    """An evaluation whose every selector but ``random`` is right on ``chosen`` of the problems."""
    alone = Estimate(mean=pass_at_1, ci95=(pass_at_1 - 0.02, pass_at_1 + 0.04))
    best = Estimate(mean=pass_at_1 if chosen is None else chosen)
    nothing = dict.fromkeys(CriticNumbers.model_fields) | {"ci95": {}, "auroc": auroc}
    numbers = AggregationNumbers(auroc=auroc, auroc_within_question=None, reward_at_1=best)
    counts = dict.fromkeys(SampleCounts.model_fields, 0)
    return Evaluation(
        dataset=DatasetFacts(name="arithmetic", digest="sha256:d0", num_problems=250),
        samples_per_problem=16,
        seed=0,
        pass_at_k={1: alone},
        selectors={name: {1: alone if name == "random" else best} for name in SELECTORS},
        strict=StrictRule(pass_at_1=alone, disagreements=0),
        samples=SampleCounts(**counts),
        critic=CriticNumbers(**nothing),
        by_aggregation={"mean": numbers},
        calibration=Calibration(),
        reliability=[],
        adaptive=[],
        fixed=[],
    )


def rerank_result() -> RerankResult:
    """Two candidates, the second one chosen."""
    candidates = [
        RerankCandidate(index=i, text=f"#### {i}", answer=str(i), reward=float(i), finish_reason="stop", num_tokens=3)
        for i in (0, 1)
    ]
    return RerankResult(
        selector="weighted_majority",
        requested_selector="weighted_majority",
        aggregation="mean",
        candidates_requested=2,
        candidates_sampled=2,
        candidates_scored=2,
        chosen_index=1,
        degraded=None,
        stopped_early=False,
        explanation="1 has the most weight",
        pair=PairVersions(policy_version="7", critic_version="7"),
        answers=[AnswerVotes(answer="1", votes=1, weight=0.7), AnswerVotes(answer="0", votes=1, weight=0.2)],
        timings_ms=RerankTimings(sampling=1.0, scoring=1.0, total=2.0),
        candidates=candidates,
    )


def summary() -> Summary:
    halves = {
        role: PairHalf(role=role, version=7, uri=f"/tmp/{role}")  # type: ignore[arg-type]
        for role in ("policy", "critic")
    }
    return Summary(
        seed=3,
        wall_s=312.4,
        peak_rss_mib=3021,
        stages=[StageTime(name="sft", wall_s=61.2)],
        pair=Pair(**halves, tokenizer_digest="sha256:41", aliases=("champion",)),
        urls=SummaryUrls(gateway="http://127.0.0.1:1", mlflow="http://127.0.0.1:2"),
        evaluations={"untrained": evaluation(0.01), "sft": evaluation(0.5), "airl": evaluation(0.6, chosen=0.75)},
        answer=DemoAnswer(question="2+2?", text="#### 1", correct=False, rerank=rerank_result()),
    )
