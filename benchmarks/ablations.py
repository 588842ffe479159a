"""What each part of the AIRL recipe does in the arithmetic world: the manifest's run beside runs with one thing changed.

    python -m benchmarks.ablations [--seeds 0] [--only "as it is" "trace rewards"] [--state-dir out/ablations] [--only-table]

Every variant starts from the same SFT policy of its seed and is judged on the same test problems (5 minutes or so each on
two cores). Folders are kept, so a stopped run goes on where it was. Prints the ablation table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.learning import CRITIC_COLUMNS, MANIFESTS, POLICY_COLUMNS, Body, headlines

from irlops.local.training import run_pytorchjob

VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "less critic": {
        "critic.branch_warmup_updates": 700,
        "critic.branch_updates_per_round": 6,
        "critic.perturbations_per_positive": 1,
    },
    "one corruption of each expert": {"critic.perturbations_per_positive": 1},
    "blame the error alone": {"critic.perturbed_target": "error"},
    "no corrupted experts": {"critic.perturbations_per_positive": 0},
    "no branches off experts": {"critic.branches_per_expert": 0, "critic.branch_warmup_updates": 0},
    "every token of a wrong solution is wrong": {"critic.negatives": "every_token"},
    "all of the critic trains": {"model.critic_trains": "all"},
    "no added layers": {"model.critic_extra_layers": 0, "model.critic_trains": "all"},
    "balance over everything": {"critic.mass_balance": "global"},
    "trace rewards": {"policy.branches_per_sample": 0},
    "AdamW for the policy": {"policy.optimizer.name": "adamw"},
}
COLUMNS = {
    **{name: POLICY_COLUMNS[name] for name in ("pass@1 = random", "reward@16", "majority@16", "weighted@16")},
    **{name: CRITIC_COLUMNS[name] for name in ("AUROC", "Hit@1", "Hit@1 logprob")},
}


def run_variant(name: str, seed: int, state_dir: Path, num_test: int) -> Body:
    """Train and evaluate one variant of one seed from that seed's SFT policy; its evaluation.json."""
    folder = state_dir / f"seed-{seed}"
    slug = "airl-" + name.replace(" ", "-")
    train = [("sft-tiny", "sft-tiny", {}), ("airl-tiny", slug, VARIANTS[name])]
    judge = {
        "data.num_test": num_test,
        "compare": {},
        "model.policy_from": f"{slug}/policy",
        "model.critic_from": f"{slug}/critic",
    }
    for manifest, run_name, overrides in [*train, ("evaluate-tiny", f"evaluate-{slug}", judge)]:
        done = folder / f"{run_name}.done"
        if not done.exists():
            run_pytorchjob(
                MANIFESTS / f"{manifest}.yaml",
                state_dir=folder,
                overrides={"seed": seed, "run_name": run_name, **overrides},
                on_line=headlines(f"{name}, seed {seed}"),
            ).raise_if_failed()
            done.write_text("\n")
    return read_variant(name, folder)


def read_variant(name: str, folder: Path) -> Body:
    """What one variant left."""
    slug = "airl-" + name.replace(" ", "-")
    (evaluation,) = folder.glob(f"*/evaluate-{slug}/evaluation/evaluation.json")
    return json.loads(evaluation.read_text())


def line(name: str, bodies: list[Body]) -> str:
    """One row of the table: means over seeds, with the sample standard deviation where there are several."""
    cells = []
    for column, read in COLUMNS.items():
        digits = 1 if column in POLICY_COLUMNS else 3
        values = [value for body in bodies if (value := read(body)) is not None]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.fmean(values):.{digits}f}{spread}" if values else "-")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--state-dir", type=Path, default=Path("out/ablations"))
    parser.add_argument("--num-test", type=int, default=250)
    parser.add_argument("--only-table", action="store_true", help="of what earlier runs left")
    options = parser.parse_args()

    def get(name: str, seed: int) -> Body:
        if options.only_table:
            return read_variant(name, options.state_dir / f"seed-{seed}")
        return run_variant(name, seed, options.state_dir, options.num_test)

    rows = [line(name, [get(name, seed) for seed in options.seeds]) for name in options.only]
    print("\n".join([f"| Variant | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|", *rows]))


if __name__ == "__main__":
    main()
