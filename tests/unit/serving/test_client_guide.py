"""The client guide's programs run as they stand, against a gateway."""

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from support.gateway_rig import RIGHT, rig

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "clients.md").read_text()


def _blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)


async def _run(url, *command):
    environment = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "unused"}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.mark.parametrize(
    ("program", "said"),
    list(zip(_blocks("python"), ["4 of 8 candidates answer 4", "8 of 8 scored", RIGHT], strict=True)),
    ids=["the official client", "its streams", "the standard library alone"],
)
async def test_the_guides_python_programs_print_the_answer(program, said):
    async with rig({"solutions": [RIGHT, "5 #### 5"]}) as r:
        printed = await _run(r.url, sys.executable, "-c", program)
    assert RIGHT in printed
    assert said in printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("command", "said"),
    list(zip(_blocks("bash"), ['"explanation":', '"suspected_first_error":', '"rewards":{"step"'], strict=True)),
    ids=["best of N", "rewards", "rewards on a stream"],
)
async def test_the_guides_curl_commands_are_answered(command, said):
    async with rig({"solutions": [RIGHT]}) as r:
        assert said in await _run(r.url, "bash", "-c", command)
