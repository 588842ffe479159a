"""What 1,000 pipelines that nothing happens to cost: API writes and reads a minute, memory, CPU.

    python benchmarks/operator_idle.py [--pipelines 1000] [--seconds 150]

The operator runs as its own process against an in-memory API over HTTP. Nine tenths of the pipelines are done (one of
them asks for serving), the others train. Every pipeline is looked at again at least once within the measured time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY / "platform"), str(REPOSITORY / "tests")]

from irlops.contracts.pipeline import parse_pipeline_spec  # noqa: E402
from irlops.operator.names import run_id  # noqa: E402
from support.kube_api import KubeApi  # noqa: E402
from support.kube_world import pair_config_map, pipeline  # noqa: E402
from support.operator_process import OperatorProcess, running_operator  # noqa: E402

RESYNC_S = 60


def fill(api: KubeApi, num_pipelines: int) -> None:
    """Pipelines as they are long after they were made."""
    api.put(pair_config_map())
    for index in range(num_pipelines):
        body = pipeline(f"team-{index:04}", **({} if index == 0 else {"serving": None}))
        if index % 10 != 9:
            spec = parse_pipeline_spec(body["spec"], origin="benchmark")
            done = {"run": run_id(body, spec), "generation": 1, "outcome": "Registered", "message": "done"}
            pair = {"policyVersion": str(index + 1), "criticVersion": str(index + 1)}
            body["status"] = {"history": [{**done, "pair": pair, "finishedAt": "2026-11-20T00:00:00Z"}]}
        api.put(body)


async def settle(api: KubeApi, operator: OperatorProcess) -> None:
    """Until every pipeline was looked at and nothing is written any more."""
    while len([1 for body in api.of_kind("ReasoningPipeline").values() if body.get("status", {}).get("phase")]) < len(
        api.of_kind("ReasoningPipeline")
    ):
        assert operator.process.returncode is None, "the operator ended"
        await asyncio.sleep(1)
    for name in api.of_kind("PyTorchJob"):
        api.set_status("PyTorchJob", name, {"conditions": [{"type": "Running", "status": "True"}]})
    await asyncio.sleep(30)


def cpu_s(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def measure(num_pipelines: int, seconds: float) -> dict[str, float]:
    """Numbers over ``seconds``, after everything has settled."""
    api = KubeApi("training")
    fill(api, num_pipelines)
    with tempfile.TemporaryDirectory() as folder:
        changes = {"IRLOPS_OPERATOR_RESYNC_S": str(RESYNC_S), "IRLOPS_OPERATOR_LEASE_DURATION_S": "30"}
        async with running_operator(api, Path(folder), **changes) as operator:
            began = time.monotonic()
            await settle(api, operator)
            settled_s = time.monotonic() - began
            api.calls.clear()
            cpu_before = cpu_s(operator.process.pid)
            await asyncio.sleep(seconds)
            writes, calls = api.writes(), len(api.calls)
            return {
                "pipelines": num_pipelines,
                "settled_s": round(settled_s, 1),
                "writes_per_minute": round(len(writes) * 60 / seconds, 2),
                "lease_writes_per_minute": round(sum("leases" in call[1] for call in writes) * 60 / seconds, 2),
                "reads_per_second": round((calls - len(writes)) / seconds, 2),
                "cpu_percent": round((cpu_s(operator.process.pid) - cpu_before) * 100 / seconds, 2),
                "rss_mib": round(operator.rss_mib(), 1),
            }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipelines", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=150)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.pipelines, asked.seconds))))


if __name__ == "__main__":
    main()
