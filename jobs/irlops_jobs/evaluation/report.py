"""report.html: one page with every number, its interval and what it says; pictures inside, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from irlops.contracts.evaluation import Estimate, Evaluation, FirstError
from irlops_jobs.evaluation.figures import chosen_point

_SELECTORS = ("random", "reward", "majority", "weighted_majority", "longest", "logprob")


@dataclass(frozen=True)
class Picture:
    """A PNG of the report. Example: ``Picture(Path("rewards.png"), "Reward of right and wrong solutions.")``."""

    path: Path
    caption: str


def render_report(evaluations: Mapping[str, Evaluation], pair_row: str, pictures: Sequence[Picture]) -> str:
    """The page, self-contained.

    Args:
        evaluations: By row; ``pair_row`` is the one whose critic judged them all.
    """
    pair = evaluations[pair_row]
    environment = Environment(
        loader=PackageLoader("irlops_jobs.evaluation", "."), autoescape=True, undefined=StrictUndefined
    )
    data = pair.dataset
    return environment.get_template("report.html.j2").render(
        title=f"Evaluation of {pair_row} on {data.name}",
        facts=f"{data.num_problems} {data.split} problems, {pair.samples_per_problem} samples each, seed {pair.seed}.",
        lead=_lead(pair),
        samples=pair.samples_per_problem,
        policies=_policies(evaluations, pair_row),
        pair_row=pair_row,
        numbers=_numbers(pair),
        notes=_notes(pair),
        rules=_rules(pair),
        pictures=[
            {
                "alt": picture.path.stem.replace("_", " "),
                "caption": picture.caption,
                "data": base64.b64encode(picture.path.read_bytes()).decode(),
            }
            for picture in pictures
        ],
        method=_method(pair),
    )


def _lead(pair: Evaluation) -> str:
    """The one thing to know, said no stronger than it is."""
    gain = pair.differences["reward-random"]
    alone, chosen = pair.pass_at_k[1], pair.selectors["weighted_majority"][1]
    text = f"One sample is right on {_percent(alone)} % of problems; with the critic weighing the votes of "
    text += f"{pair.samples_per_problem}, {_percent(chosen)} %. "
    if gain.mean is None or gain.ci95 is None:
        return text
    if gain.ci95[0] > 0:
        return text + f"Choosing by reward alone gains {100 * gain.mean:.1f} points over chance ({_spread(gain)})."
    return (
        text + f"Choosing by reward alone changes {100 * gain.mean:+.1f} points, which may be chance ({_spread(gain)})."
    )


def _policies(evaluations: Mapping[str, Evaluation], pair_row: str) -> dict[str, Any]:
    names = sorted(evaluations, key=lambda name: name == pair_row)
    return {
        "head": ("", "pass@1", *(name.replace("_", " ") for name in _SELECTORS[1:]), "stops when sure", "AUROC"),
        "rows": [
            {"name": name, "is_pair": name == pair_row, "cells": _policy_cells(evaluations[name])} for name in names
        ],
    }


def _policy_cells(evaluation: Evaluation) -> list[dict[str, str]]:
    estimates = [evaluation.selectors[name][1] for name in _SELECTORS]
    point, critic = chosen_point(evaluation), evaluation.critic
    return [
        *({"value": _percent(estimate), "spread": _spread(estimate)} for estimate in estimates),
        {"value": f"{100 * point.accuracy:.1f}", "spread": f"{point.mean_samples:.1f} samples"},
        {"value": _number(critic.auroc), "spread": _ends(critic.ci95.get("auroc"))},
    ]


_CRITIC_ROWS = (
    ("auroc", "AUROC", "Right samples outrank wrong ones this often, over all samples."),
    (
        "auroc_within_question",
        "AUROC within a question",
        "The same among samples of one question: difficulty can't help.",
    ),
    ("auroc_answer_span", "AUROC of the answer span", "From the mean reward of the final answer's tokens alone."),
    ("ece", "ECE", "How far calibrated chances are from what happens, on average; 0 is honest."),
    ("ece_before", "ECE before calibration", "The same with the raw reward taken for log-odds."),
    ("pearson_correctness", "Correlation with being right", "Pearson, over samples, of the calibrated chance."),
    ("pearson_format", "Correlation with format", "Should be small: a critic of looks is easily fooled."),
    ("pearson_length", "Correlation with length", "In tokens."),
)


def _numbers(pair: Evaluation) -> list[dict[str, str]]:
    rows = [
        {
            "name": title,
            "value": _number(getattr(pair.critic, key)),
            "spread": _ends(pair.critic.ci95.get(key)),
            "says": says,
        }
        for key, title, says in _CRITIC_ROWS
    ]
    return rows + _first_error_numbers(pair) + _difference_numbers(pair)


def _first_error_numbers(pair: Evaluation) -> list[dict[str, str]]:
    return [
        *_localised(
            pair.first_error, "First error, Hit@1", "corrupted expert solutions the guessed token is a wrong one"
        ),
        *_localised(
            pair.first_own_error,
            "First error of its own, Hit@1",
            "wrong samples of the policy the guessed token is the first that departs from the right solution",
        ),
    ]


def _localised(found: FirstError | None, name: str, what: str) -> list[dict[str, str]]:
    if found is None:
        return []
    published = found.by_rule.get("lowest", {}).get("logprob")
    return [
        {
            "name": name,
            "value": _number(found.hit_at_1),
            "spread": _ends(found.ci95),
            "says": f"In {found.num_traces} {what}; a random token would be with {_number(found.chance)}. "
            f"Rule: {_rule(found.rule, found.threshold)}.",
        },
        {
            "name": "by the policy's log-probability",
            "value": _number(found.logprob_hit_at_1),
            "spread": _ends(found.logprob_ci95),
            "says": "The same from the policy's own surprise, by the rule that suits it best: "
            f"{_rule(found.logprob_rule, found.logprob_threshold)}. Its least likely token, as published: {_number(published)}.",
        },
        {
            "name": "by both, the expert's log-probability",
            "value": _number(found.recovered_hit_at_1),
            "spread": _ends(found.recovered_ci95),
            "says": "The same from reward plus log-probability, which is what the expert would write at that place, as far as the "
            f"pair knows (AIRL's f). Rule: {_rule(found.recovered_rule, found.recovered_threshold)}.",
        },
    ]


def _rule(name: str, threshold: float | None) -> str:
    return name.replace("_", " ") + ("" if threshold is None else f" {threshold:.2f}")


def _rules(pair: Evaluation) -> list[dict[str, str]]:
    by_rule = pair.first_error.by_rule if pair.first_error else {}
    return [
        {"name": name.replace("_", " "), **{kind: _number(hit) for kind, hit in hits.items()}}
        for name, hits in by_rule.items()
    ]


_DIFFERENCES = {
    "reward-random": "Reward against chance",
    "reward-majority": "Reward against majority",
    "weighted_majority-majority": "Weighted against plain majority",
    "adaptive-weighted_majority": "Stopping when sure against all samples",
}


def _difference_numbers(pair: Evaluation) -> list[dict[str, str]]:
    titles = {**_DIFFERENCES, **{key: f"pass@1 against {key.partition('-')[2]}" for key in pair.differences}}
    titles |= _DIFFERENCES
    return [
        {
            "name": titles[key],
            "value": "-" if one.mean is None else f"{100 * one.mean:+.1f}",
            "spread": _spread(one),
            "says": "Percentage points, paired: the same problems on both sides.",
        }
        for key, one in pair.differences.items()
    ]


def _notes(pair: Evaluation) -> list[str]:
    counts, strict = pair.samples, pair.strict
    left_out = (
        f"Of {counts.total} samples {counts.without_answer} give no answer and {counts.truncated} ran out of tokens: they are "
        f"wrong and never vote. {counts.empty} are empty and have no reward; {counts.without_answer_span} have no answer span."
    )
    rule = (
        "Answers are compared as mathematics. By the published strict rule (the gold string to the letter) pass@1 is "
        f"{_percent(strict.pass_at_1)} % ({_spread(strict.pass_at_1)}); the rules disagree on {strict.disagreements} samples."
    )
    return [left_out, rule]


def _method(pair: Evaluation) -> list[str]:
    calibration = pair.calibration
    sampling = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in pair.sampling.items())
    return [
        f"Pair: policy {pair.pair.get('policy')}, critic {pair.pair.get('critic')}. Sampling: {sampling}. "
        f"Test problems: {pair.dataset.digest}.",
        "Everything fitted was fitted on held-out dev problems, never on these: a solution's reward is the "
        f"{calibration.aggregation} of its token rewards; its chance of being right is sigmoid((reward "
        f"{-calibration.bias:+.3f}) / {calibration.temperature:.3f}); adaptive sampling stops at a confidence of "
        f"{calibration.stop_confidence:g}. The rules that guess the first error were chosen on dev solutions as well.",
        "pass@k and random choice are exact expectations over all choices of k samples (Chen et al., arXiv 2107.03374). "
        "Intervals are percentiles of a bootstrap that draws whole problems.",
    ]


def _percent(estimate: Estimate) -> str:
    return "-" if estimate.mean is None else f"{100 * estimate.mean:.1f}"


def _spread(estimate: Estimate) -> str:
    return "" if estimate.ci95 is None else f"{100 * estimate.ci95[0]:.1f} to {100 * estimate.ci95[1]:.1f}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _ends(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"
