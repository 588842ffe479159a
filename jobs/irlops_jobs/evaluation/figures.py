"""The pictures of an evaluation, each from numbers that stand in evaluation.json or from the samples it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from irlops.contracts.evaluation import Evaluation, SamplingPoint
from irlops_jobs.evaluation.measure import Measured
from irlops_jobs.evaluation.style import (
    CRITIC,
    NEUTRAL,
    RIGHT,
    SELECTOR_COLOURS,
    SELECTOR_TITLES,
    WRONG,
    drawn,
    say_nothing,
)

_PERCENT = PercentFormatter(xmax=1)
_NUM_BARS = 40


def reward_distributions(measured: Measured) -> Figure:
    """Rewards of right and of wrong samples, each side's area 1."""
    reward = measured.table.reward_by(measured.calibration.aggregation)
    known = ~np.isnan(reward)
    right, wrong = reward[known & measured.table.right_PN], reward[known & ~measured.table.right_PN]
    with drawn(3.6) as (figure, axes):
        if not len(right) or not len(wrong):
            say_nothing(axes, "every sample is right" if len(right) else "no sample is right")
            return figure
        edges = np.histogram_bin_edges(np.concatenate([right, wrong]), bins=_NUM_BARS)
        for values, colour, name in ((right, RIGHT, "right"), (wrong, WRONG, "wrong")):
            axes.hist(values, edges, density=True, color=colour, alpha=0.45, histtype="stepfilled")
            axes.hist(
                values, edges, density=True, color=colour, linewidth=1.8, histtype="step",
                label=f"{name} ({len(values)}), mean {values.mean():.2f}",
            )  # fmt: skip
        axes.axvline(measured.calibration.bias, color="black", linewidth=1.2, linestyle=":", label="even chance")
        axes.set_title(f"Reward of right and wrong solutions (AUROC {_number(measured.evaluation.critic.auroc)})")
        axes.set_xlabel(f"reward of a solution: {measured.calibration.aggregation} of its token rewards")
        axes.set_ylabel("density")
        axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend
        axes.legend(loc="upper left", ncols=3)
    return figure


def selector_curves(evaluation: Evaluation) -> Figure:
    """Accuracy of each selector's best k of N."""
    ks = sorted(evaluation.selectors["random"])
    names = [name for name in SELECTOR_TITLES if name in evaluation.selectors]
    with drawn(4.2) as (figure, axes):
        for place, name in enumerate(names):
            estimates = [evaluation.selectors[name][k] for k in ks]
            means = np.array([e.mean for e in estimates], np.float64)
            spread = [e.ci95 or (e.mean or 0.0, e.mean or 0.0) for e in estimates]
            # A little to the side of each other, so that no interval hides another.
            x = np.arange(len(ks)) + 0.06 * (place - (len(names) - 1) / 2)
            bars = np.abs(np.array(spread).T - means)
            axes.errorbar(
                x, means, yerr=bars, color=SELECTOR_COLOURS[name], marker="os^Dvx"[place], markersize=6, capsize=3,
                elinewidth=1.2, linestyle="--" if name == "random" else "-", label=f"{SELECTOR_TITLES[name]}: {means[0]:.1%}",
            )  # fmt: skip
        axes.set_xticks(np.arange(len(ks)), [str(k) for k in ks])
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel(f"k: solutions that a selector may name, of {evaluation.samples_per_problem}")
        axes.set_ylabel("problems with a right one")
        axes.set_title("Accuracy by selector, 95 % intervals")
        axes.legend(title="at k = 1", loc="lower right", ncols=2)
    return figure


def correlations(evaluation: Evaluation) -> Figure:
    """What the calibrated reward goes with."""
    critic = evaluation.critic
    bars = (
        ("being right", "pearson_correctness", RIGHT),
        ("being well formatted", "pearson_format", NEUTRAL),
        ("length", "pearson_length", NEUTRAL),
        ("answer span, being right", "pearson_correctness_answer_span", RIGHT),
        ("answer span, format", "pearson_format_answer_span", NEUTRAL),
    )
    with drawn(3.0) as (figure, axes):
        for place, (_, name, colour) in enumerate(bars):
            value, ends = getattr(critic, name), critic.ci95.get(name)
            if value is None:
                axes.text(0.02, place, "not defined: it never varies here", va="center", color=NEUTRAL)
                continue
            axes.barh(place, value, color=colour, height=0.62)
            if ends is not None:
                axes.plot(ends, [place, place], color="black", linewidth=1.4)
            edge = max(value, 0.0, *(ends or ()))
            axes.text(edge + 0.02, place, f"{value:.2f}", va="center")
        axes.set_yticks(range(len(bars)), [title for title, _, _ in bars])
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -0.05), min(1.12, max(high, 0.3) + 0.08))
        axes.set_ylim(len(bars) - 0.45, -0.55)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("Pearson correlation with the calibrated reward; 95 % intervals")
        axes.set_title("What the reward goes with")
    return figure


def calibration_curve(evaluation: Evaluation) -> Figure:
    """Chances the critic gives against how often it is right, and how many samples got each chance."""
    bins = [one for one in evaluation.reliability if one.num_samples]
    with drawn(5.0, nrows=2, sharex=True, height_ratios=[3, 1]) as (figure, (curve, counts)):
        curve.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=1.2, linestyle="--", label="perfectly honest")
        predicted, observed = [one.predicted for one in bins], [one.observed for one in bins]
        curve.plot(predicted, observed, color=CRITIC, linewidth=1.2)
        most = max((one.num_samples for one in bins), default=1)
        curve.scatter(
            predicted, observed, [20 + 180 * one.num_samples / most for one in bins], color=CRITIC, zorder=3, clip_on=False,
            label="the critic (larger: more samples)",
        )  # fmt: skip
        curve.set_ylabel("part that is right")
        critic = evaluation.critic
        curve.set_title(f"Calibration (ECE {_number(critic.ece)}; of the raw reward {_number(critic.ece_before)})")
        counts.legend(*curve.get_legend_handles_labels(), loc="upper center")
        curve.set_ylim(-0.03, 1.03)
        curve.set_xlim(-0.02, 1.02)
        width = bins[0].upper - bins[0].lower if bins else 1.0
        counts.bar(
            [(one.lower + one.upper) / 2 for one in bins], [one.num_samples for one in bins], width * 0.9, color=CRITIC
        )
        counts.set_ylabel("samples")
        counts.set_xlabel("calibrated chance of being right")
        counts.xaxis.set_major_formatter(_PERCENT)
        curve.yaxis.set_major_formatter(_PERCENT)
    return figure


def samples_against_accuracy(evaluation: Evaluation) -> Figure:
    """What more samples buy: the same number for every problem, and stopping when sure."""
    with drawn(4.0) as (figure, axes):
        _draw_points(axes, evaluation.fixed, WRONG, "o", "same number for every problem")
        _draw_points(axes, evaluation.adaptive, CRITIC, "D", "stops when sure")
        chosen = chosen_point(evaluation)
        axes.plot(
            chosen.mean_samples, chosen.accuracy, marker="D", markersize=13, markerfacecolor="none",
            markeredgecolor="black", markeredgewidth=1.6, linestyle="none",
            label=f"as sure as dev problems chose: {chosen.accuracy:.1%} with {chosen.mean_samples:.1f} samples{_paired_loss(evaluation)}",
        )  # fmt: skip
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel("samples per problem, mean")
        axes.set_ylabel("weighted majority is right")
        axes.set_title("Samples against accuracy")
        axes.legend(loc="lower right")
    return figure


def chosen_point(evaluation: Evaluation) -> SamplingPoint:
    """Where adaptive sampling stands with the confidence that dev problems chose."""
    chosen = evaluation.calibration.stop_confidence
    return min(evaluation.adaptive, key=lambda point: abs((point.confidence or 0.0) - chosen))


def _paired_loss(evaluation: Evaluation) -> str:
    """What stopping early changes on the same problems: their intervals overlap far more than the difference's."""
    loss = evaluation.differences.get("adaptive-weighted_majority")
    if loss is None or loss.mean is None or loss.ci95 is None:
        return ""
    low, high = (100 * end for end in loss.ci95)
    return f",\n{100 * loss.mean:+.1f} points against all of them ({low:+.1f} to {high:+.1f})"


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Reward and correctness over a run's training rounds, of its own samples and of held-out questions.

    Args:
        rows: Of metrics.jsonl, in order.
    """
    with drawn(6.4, nrows=2, sharex=True) as (figure, (rewards, accuracy)):
        for key, colour, name in (("reward/right", RIGHT, "right"), ("reward/wrong", WRONG, "wrong")):
            _draw_series(rewards, rows, key, colour, f"{name}, training")
        for key, colour, name in (("dev/reward_right", RIGHT, "right"), ("dev/reward_wrong", WRONG, "wrong")):
            _draw_series(rewards, rows, key, colour, f"{name}, held-out", held_out=True)
        _draw_series(accuracy, rows, "rollout/accuracy", RIGHT, "right answers, training")
        _draw_series(accuracy, rows, "dev/accuracy", RIGHT, "right answers, held-out", held_out=True)
        _draw_series(accuracy, rows, "dev/auroc", CRITIC, "critic's AUROC, held-out", held_out=True)
        rewards.set_title("Reward over training")
        rewards.set_ylabel("mean reward")
        accuracy.set_title("Correctness over training")
        accuracy.set_xlabel("round")
        accuracy.set_ylim(-0.03, 1.03)
        accuracy.yaxis.set_major_formatter(_PERCENT)
        accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (rewards, accuracy):
            if axes.lines:
                axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
            else:
                say_nothing(axes, "the run recorded none of these numbers")
    return figure


def _draw_series(
    axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, name: str, *, held_out: bool = False
) -> None:
    points = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    points = [(step, value) for step, value in points if np.isfinite(value)]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    if held_out:
        axes.plot(steps, values, color=colour, linestyle="--", marker="o", markersize=5, label=name)
    else:
        axes.plot(steps, values, color=colour, alpha=0.85, linewidth=1.6, label=name)


def _draw_points(axes: Axes, points: Sequence[SamplingPoint], colour: str, marker: str, name: str) -> None:
    x, y = [point.mean_samples for point in points], [point.accuracy for point in points]
    axes.plot(x, y, color=colour, marker=marker, markersize=5, label=name)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
