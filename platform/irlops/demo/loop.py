"""The stages of the demo, each a call of what the other commands use, with nothing left alive behind them.

data -> mlflow -> sft -> airl -> evaluate -> register -> serve -> ask -> summary.json, report.html, pictures
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from irlops.answers import answers_agree
from irlops.cli.gateway_client import Answer, ask_gateway
from irlops.contracts.evaluation import Evaluation
from irlops.contracts.jobs import AirlJob, EvaluateJob, SftJob
from irlops.contracts.pair import Pair
from irlops.contracts.summary import DemoAnswer, StageTime, Summary, SummaryRow, SummaryUrls
from irlops.demo import results
from irlops.demo.asking import ask_until_disputed
from irlops.demo.folder import DemoFolder, claim_folder, only_demo
from irlops.demo.jobs import PlannedJob, find_manifests, plan_job, run_job
from irlops.demo.memory import PeakMemory
from irlops.demo.progress import JobProgress
from irlops.demo.screen import Screen, StageView, shown_path
from irlops.demo.surroundings import ending_on_signals, introduction, policy_backend, program, require_packages
from irlops.errors import DataError, IrlopsError, PreemptedError
from irlops.local.processes import start_supervised
from irlops.local.serve import ServedPair, ServerStatus, serve_pair
from irlops.registry.server import MlflowServer, start_mlflow_server

STAGES = ("data", "mlflow", "sft", "airl", "evaluate", "register", "serve", "ask")
NUM_CANDIDATES = 16
_NUM_EXAMPLES = 32
_MLFLOW_TIMEOUT_S = 600.0
"""Importing mlflow takes seconds, and minutes on a machine that others keep busy."""
_POLL_S = 0.1


@dataclass(frozen=True)
class DemoSettings:
    """What the command was asked for.

    Example: ``DemoSettings(output_dir=Path("out/demo"), home=Path(".irlops"), seed=7)``
    """

    output_dir: Path
    home: Path
    """Gets MLflow with the registered pairs, where the other commands look for them."""
    seed: int = 0
    keep: bool = False
    """Leave the servers running until Ctrl-C."""
    manifests_dir: Path | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Stage (sft, airl, evaluate) to dotted keys of its job file, for smaller runs."""


def run_demo(settings: DemoSettings, screen: Screen) -> Summary:
    """Run every stage; the summary is also written to ``<output_dir>/summary.json``.

    Raises:
        IrlopsError: a stage failed; the message names it and its logs. What was finished before stays in the folder.
        JobFailedError: a job failed, likewise.
    """
    require_packages()
    manifests = find_manifests(settings.manifests_dir)
    jobs = {
        name: plan_job(
            manifests / f"{name}-tiny.yaml", {"seed": settings.seed, **settings.overrides.get(name, {})}, kind
        )
        for name, kind in (("sft", SftJob), ("airl", AirlJob), ("evaluate", EvaluateJob))
    }
    with ending_on_signals(), only_demo(settings.home), PeakMemory() as memory, contextlib.ExitStack() as running:
        folder = claim_folder(settings.output_dir)
        loop = Loop(settings, folder, screen, jobs, running)
        try:
            summary = loop.run(memory)
            if settings.keep:
                loop.keep_serving()
        except BaseException:
            screen.stopping()
            raise
    return summary


class Loop:
    """One run; every server it starts is put on ``running``, which ends them in the opposite order."""

    def __init__(
        self,
        settings: DemoSettings,
        folder: DemoFolder,
        screen: Screen,
        jobs: Mapping[str, PlannedJob],
        running: contextlib.ExitStack,
    ) -> None:
        self._settings, self._folder, self._screen, self._jobs, self._running = settings, folder, screen, jobs, running
        self._times: list[StageTime] = []
        self._run_dirs: dict[str, Path] = {}
        self._servers: ServedPair | None = None
        self._short_question = "…"
        """For whoever goes on: a problem of the only kind that this small model has ever seen."""

    def run(self, memory: PeakMemory) -> Summary:
        """All stages and the end of the story."""
        self._screen.header(*introduction(self._settings.seed, self._folder.path))
        # MLflow takes seconds to import itself; meanwhile the first stage looks at the data.
        mlflow = self._running.enter_context(start_mlflow_server(self._settings.home / "mlflow", wait=False))
        examples = self._show_data()
        self._wait_for_mlflow(mlflow)
        self._train(mlflow.uri)
        evaluations = self._evaluate(mlflow.uri)
        pair = self._register(mlflow.uri, evaluations)
        self._servers = servers = self._serve(pair)
        answer = self._ask(servers, examples)
        summary = Summary(
            seed=self._settings.seed,
            wall_s=round(self._screen.elapsed_s, 1),
            peak_rss_mib=memory.peak_mib,
            stages=self._times,
            pair=pair,
            urls=SummaryUrls(gateway=servers.urls.gateway, mlflow=mlflow.uri),
            evaluations=evaluations,
            answer=answer,
        )
        self._folder.write_summary(summary.to_json())
        self._show_end(summary)
        return summary

    def keep_serving(self) -> None:
        """Until Ctrl-C, or until one of the servers ends.

        Raises:
            UnavailableError: one of them ended by itself.
        """
        assert self._servers is not None, "called after run()"
        self._screen.note("Still serving; Ctrl-C ends all of it.")
        with contextlib.suppress(KeyboardInterrupt):
            self._servers.wait()
        self._screen.stopping()

    @contextlib.contextmanager
    def _stage(self, name: str, title: str, what: str) -> Iterator[StageView]:
        place = f"[{STAGES.index(name) + 1}/{len(STAGES)}]"
        started = time.monotonic()
        try:
            with self._screen.stage(place, title, what) as view:
                yield view
        except PreemptedError as error:
            raise PreemptedError(
                f"The demo was asked to stop during {title}. What was finished lies in {self._folder.path}; the next "
                "demo begins anew."
            ) from error
        except IrlopsError as error:
            raise type(error)(f"{title}: {error} What was finished before lies in {self._folder.path}.") from error
        self._times.append(StageTime(name=name, wall_s=round(time.monotonic() - started, 2)))

    def _show_data(self) -> dict[str, Any]:
        with self._stage("data", "Demonstrations", "word problems with expert solutions, made from a seed") as view:
            examples = _load_examples(self._jobs["evaluate"], self._folder, view)
            num_rows = examples["num_rows"]
            view.done(
                f"{num_rows['train']} to learn from, {num_rows['dev']} held out, {num_rows['test']} for the test; one of them:"
            )
            first = examples["examples"]["train"][0]
            self._short_question = min((row["question"] for row in examples["examples"]["test"]), key=len)
            self._screen.example({"question": first["question"], "expert": first["solution"]})
        return examples

    def _wait_for_mlflow(self, mlflow: MlflowServer) -> None:
        with self._stage("mlflow", "MLflow", "records every run, and keeps the registered pairs") as view:
            mlflow.wait_until_ready(_MLFLOW_TIMEOUT_S, on_wait=lambda: view.update("starting"))
            view.done(mlflow.uri)

    def _train(self, tracking_uri: str) -> None:
        for name, title, what, describe in (
            ("sft", "SFT", "the policy imitates the experts' solutions", results.describe_sft),
            (
                "airl",
                "AIRL",
                "critic and policy learn in turn: who wrote it, and how to write it",
                results.describe_airl,
            ),
        ):
            with self._stage(name, title, f"{what} · {self._origin(name)}") as view:
                view.done(describe(self._run(name, view, JobProgress(), tracking_uri)))

    def _evaluate(self, tracking_uri: str) -> dict[SummaryRow, Evaluation]:
        job = self._jobs["evaluate"].job
        assert isinstance(job, EvaluateJob)
        what = f"{job.samples_per_problem} samples for each test problem · {self._origin('evaluate')}"
        with self._stage("evaluate", "Evaluation", what) as view:
            progress = JobProgress(total=len(job.compare) + 2)
            evaluation_dir = self._run("evaluate", view, progress, tracking_uri) / "evaluation"
            evaluations = results.read_rows(evaluation_dir)
            self._folder.publish(evaluation_dir)
            view.done(results.describe_airl_evaluation(evaluations["airl"]))
        return evaluations

    def _run(self, name: str, view: StageView, progress: JobProgress, tracking_uri: str) -> Path:
        """The folder that the job's run left, when it has ended well."""
        result = run_job(self._jobs[name], view, progress, state_dir=self._folder.state_dir, tracking_uri=tracking_uri)
        assert result.state_dir is not None, "the shipped manifests set IRLOPS_STATE_DIR"
        self._run_dirs[name] = result.state_dir / self._jobs[name].job.run_name
        return self._run_dirs[name]

    def _origin(self, name: str) -> str:
        planned = self._jobs[name]
        return f"{planned.num_workers} workers, {planned.manifest.name}"

    def _register(self, tracking_uri: str, evaluations: Mapping[SummaryRow, Evaluation]) -> Pair:
        with self._stage("register", "Registry", "policy and critic become one pair, and the champion") as view:
            view.update("registering")
            from irlops.registry.pairs import PairRegistry

            registry = PairRegistry(tracking_uri)
            champions = [pair for pair in registry.list() if "champion" in pair.aliases]
            pair = registry.register_run(
                self._run_dirs["airl"], evaluation=evaluations["airl"].body(), alias="challenger"
            )
            pair = registry.promote(f"v{pair.policy.version}")
            before = f"; v{champions[0].policy.version} was before: `irlops pairs rollback`" if champions else ""
            view.done(
                f"irlops-policy v{pair.policy.version} and irlops-critic v{pair.critic.version} are champion{before}"
            )
        return pair

    def _serve(self, pair: Pair) -> ServedPair:
        backend, why = policy_backend()
        what = f"critic on KServe, policy on {why}, gateway in front"
        with self._stage("serve", "Serving", what) as view:
            policy_dir, critic_dir = pair.policy.local_path, pair.critic.local_path
            assert policy_dir is not None, "the embedded server keeps artifacts as files"
            assert critic_dir is not None, "the embedded server keeps artifacts as files"
            servers = self._running.enter_context(
                serve_pair(
                    policy_dir,
                    critic_dir,
                    backend=backend,
                    versions=(str(pair.policy.version), str(pair.critic.version)),
                    log_dir=self._folder.log_dir,
                )
            )
            servers.wait_until_ready(on_progress=_show_servers(view))
            view.done(servers.urls.gateway)
        return servers

    def _ask(self, servers: ServedPair, examples: Mapping[str, Any]) -> DemoAnswer:
        def ask(question: str) -> Answer:
            return ask_gateway(
                servers.urls.gateway,
                question,
                {
                    "candidates": NUM_CANDIDATES,
                    "adaptive": False,
                    "return_candidates": True,
                    "return_token_rewards": True,
                },
                model="reranked",
                timeout_s=120.0,
                on_progress=lambda sampled, scored, wanted: view.update(f"{sampled} sampled", scored, wanted),
                max_tokens=self._jobs["evaluate"].job.rollouts.max_new_tokens,  # pyright: ignore
                temperature=1.0,
                seed=self._settings.seed,
            )

        with self._stage("ask", "Question", f"{NUM_CANDIDATES} candidates, every token rewarded by the critic") as view:
            asked = ask_until_disputed(examples["examples"]["test"], self._settings.seed, ask)
            question, gold, answer = asked.row["question"], asked.row["answer"], asked.answer
            if answer.rerank is None:
                raise DataError("The gateway's answer says nothing of its candidates. Is it an older version?")
            chosen = next(one for one in answer.rerank.candidates if one.index == answer.rerank.chosen_index)
            is_correct = answers_agree(chosen.answer, gold)
            self._screen.example({"question": question})
            before = f"after {asked.num_agreed} on which all candidates agreed; " if asked.num_agreed else ""
            view.done(f"{before}the chosen one, token by token:")
            self._screen.answer(answer, gold, correct=is_correct)
        return DemoAnswer(question=question, text=answer.text, correct=is_correct, rerank=answer.rerank)

    def _show_end(self, summary: Summary) -> None:
        airl = summary.evaluations["airl"]
        self._screen.table(results.table_rows(summary.evaluations), airl.dataset.num_problems, airl.samples_per_problem)
        pictures = sorted(self._folder.path.glob("*.png"))
        self._screen.files(
            {
                "report": shown_path(self._folder.path / "report.html"),
                "summary": shown_path(self._folder.summary_file),
                "pictures": "\n".join(map(shown_path, pictures)),
                **self._where_to_go_on(summary),
            }
        )
        self._screen.note(
            f"\nThe whole loop took {summary.wall_s:.0f} s and at most {summary.peak_rss_mib / 1024:.1f} GiB."
        )

    def _where_to_go_on(self, summary: Summary) -> dict[str, str]:
        own_name = program()
        if self._settings.keep:
            return {
                "gateway": f"{summary.urls.gateway}  (playground; API at /docs)",
                "MLflow": summary.urls.mlflow,
                "ask it": f'{own_name} ask "{self._short_question}" --url {summary.urls.gateway}',
            }
        return {
            "go on": f"{own_name} serve",
            "then": f'{own_name} ask "{self._short_question}"',
            "or": f"{own_name} pairs list",
        }


def _load_examples(planned: PlannedJob, folder: DemoFolder, view: StageView) -> dict[str, Any]:
    """How many rows each split has and the first of them, as the jobs will see them."""
    view.update("loading")
    job_file, output = folder.log_dir / "data.yaml", folder.log_dir / "data.json"
    folder.log_dir.mkdir(parents=True, exist_ok=True)
    job_file.write_text(yaml.safe_dump(planned.job.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "irlops_jobs.demonstrations", str(job_file), "--output", str(output)]
    process = start_supervised(
        "the loader", [*command, "--examples", str(_NUM_EXAMPLES)], log_file=folder.log_dir / "data.log"
    )
    try:
        while process.is_running:
            time.sleep(_POLL_S)
    finally:
        process.stop()
    if process.exit_code:
        raise DataError(f"{process.last_lines(1).removeprefix('Error: ')} Log: {process.log_file}.")
    return json.loads(output.read_text(encoding="utf-8"))


def _show_servers(view: StageView) -> Callable[[Sequence[ServerStatus]], None]:
    def show(status: Sequence[ServerStatus]) -> None:
        parts = [f"{one.name} ready" if one.is_ready else f"{one.name} starting" for one in status]
        view.update(", ".join(parts), sum(one.is_ready for one in status), len(status))

    return show
