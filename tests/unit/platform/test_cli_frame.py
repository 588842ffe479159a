"""The command line as a whole: quick help, one red line for an error, exit codes that say whether to try again."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from irlops.cli.main import COMMANDS, app, load_command
from irlops.errors import ConfigError, PreemptedError, StorageError, UnavailableError

HELP_BUDGET_S = 0.5


def installed() -> list[str]:
    folder = Path(__file__).parents[3] / "platform/irlops/cli"
    return [name for name in COMMANDS if (folder / f"{name}.py").exists()]


def run_help(*command: str, cache: Path) -> float:
    """Processor seconds of one `irlops ... --help`, bytecode cached as it is after the first start."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache), "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = "import sys; sys.argv[0] = 'irlops'; from irlops.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True, env=environment, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage: irlops" in done.stdout
    return (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bytecode")


@pytest.mark.parametrize("command", [(), *((name,) for name in installed())], ids=lambda c: " ".join(c) or "irlops")
def test_help_takes_less_than_half_a_second(command: tuple[str, ...], cache: Path) -> None:
    run_help(*command, cache=cache)  # fills the cache
    assert min(run_help(*command, cache=cache) for _ in range(2)) < HELP_BUDGET_S


def test_the_first_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from irlops.cli.main import app; import typer; c = typer.main.get_command(app);"
        "c.main(['--help'], standalone_mode=False);"
        "print(sorted({'mlflow', 'torch', 'pydantic', 'rich', 'kubernetes', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_is_listed_with_what_it_does() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert [name for name in installed() if f"\n  {name} " in shown] == installed()


@pytest.mark.parametrize("name", installed())
def test_the_line_in_the_list_is_the_first_line_of_the_command_s_own_help(name: str) -> None:
    assert (load_command(name).help or "").split("\n")[0] == COMMANDS[name].summary


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(app, ["-v"]).output.startswith("irlops 0.")


def test_a_mistyped_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["pair"])
    assert (result.exit_code, "Did you mean 'pairs'?" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong\nsetting"), 2),
        (UnavailableError("nobody there"), 200),
        (StorageError("disk full"), 201),
        (PreemptedError("asked to stop"), 143),
        (KeyboardInterrupt(), 130),
    ],
    ids=["permanent", "server away", "disk full", "preempted", "Ctrl-C"],
)
def test_a_known_failure_is_one_line_and_an_exit_code(error: BaseException, code: int) -> None:
    def failing() -> None:
        raise error

    result = CliRunner().invoke(failing_app(failing), ["fail"])
    assert result.exit_code == code
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output


def test_debug_shows_where_a_known_failure_came_from() -> None:
    def failing() -> None:
        raise ConfigError("wrong setting")

    result = CliRunner().invoke(failing_app(failing), ["--debug", "fail"])
    assert "Traceback" in result.output
    assert "Error: wrong setting" in result.output


def failing_app(command: object) -> typer.Typer:
    """The real frame around a command that fails."""
    from irlops.cli import main

    class Group(main.LazyGroup):
        def get_command(self, ctx: object, cmd_name: str) -> object:
            inner = typer.Typer(rich_markup_mode=None)
            inner.command(cmd_name)(command)  # type: ignore[arg-type]
            return typer.main.get_command(inner)

    framed = typer.Typer(cls=Group, rich_markup_mode=None)
    framed.callback()(main.global_options)
    return framed
