"""What commands write to: results to stdout, everything else (progress, errors, hints) to stderr.

Colour follows the terminal: none in a pipe, none with NO_COLOR.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from irlops.contracts.exit_codes import exit_code_for
from irlops.errors import IrlopsError

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def stderr() -> Console:
    """The console for progress and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner with ``what`` while the body runs; nothing when nobody watches."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} …"):
        yield


@contextlib.contextmanager
def reporting_errors(*, debug: bool) -> Iterator[None]:
    """End the process with one red line and the right exit code when the body fails in a known way.

    ``debug`` shows the traceback, too. Unknown failures are bugs and keep theirs.
    """
    try:
        yield
    except IrlopsError as error:
        if debug:
            traceback.print_exception(error)
        print_error(str(error))
        raise SystemExit(int(exit_code_for(error))) from error
    except KeyboardInterrupt:
        stderr().print("[yellow]Interrupted.[/yellow]")
        raise SystemExit(INTERRUPTED) from None


def print_error(message: str) -> None:
    """One error as users see it."""
    from rich.text import Text

    stderr().print(Text.assemble(("Error: ", "bold red"), (" ".join(message.split("\n")), "red")), soft_wrap=True)


def print_json(document: Any) -> None:
    """A result for programs: indented JSON, never coloured or wrapped."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    print(orjson.dumps(document, option=options, default=str).decode())


def start_logging(*, debug: bool) -> None:
    """Warnings on stderr; with ``debug`` everything."""
    line = "%(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s"
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format=line)


def wants_debug(flag: bool) -> bool:
    """``--debug`` or IRLOPS_DEBUG=1."""
    return flag or os.environ.get("IRLOPS_DEBUG", "") not in ("", "0")
