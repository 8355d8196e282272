"""The command line. Results go to stdout, everything else to stderr; bad input never ends in a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from planaria.cli.commands.check import doctor, reproduce, units
from planaria.cli.commands.connect import connect
from planaria.cli.commands.measure import landscape, lesion, resilience, respond, survive, vulnerability
from planaria.cli.commands.prepare import harden, sidecar
from planaria.cli.commands.rescue import demo, rescue

app = typer.Typer(
    name="planaria",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Damage a trained PyTorch network, measure exactly how it fails, and rescue it.\n\n"
    "Start with `planaria demo`. For your own network: "
    "`planaria rescue --model mynet.py:build --weights mynet.safetensors --task mnist`.",
    epilog="Exit codes: 0 done, 1 a --fail-under gate failed, 2 usage or input error, 4 refused as unsafe, "
    "5 environment problem, 130 / 143 stopped (the same command goes on).",
)
for _command in (
    demo,
    rescue,
    respond,
    vulnerability,
    lesion,
    resilience,
    connect,
    landscape,
    survive,
    harden,
    sidecar,
    reproduce,
    units,
    doctor,
):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        from planaria.version import version

        typer.echo(f"planaria {version()}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    del version
    if debug:
        os.environ["PLANARIA_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(guarded(lambda: app(prog_name="planaria", standalone_mode=False)))


def guarded(command: Callable[[], Any]) -> int:
    """Run a command and turn what goes wrong into a message on stderr and an exit code."""
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Stopped.", err=True)
        return 130
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer's own answer to it is exit code 1
            return _unread()
        raise
    except BrokenPipeError:
        return _unread()
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "format_message"):
            # A usage error; told by its form, because typer brings click's classes along under another name.
            error.show()
            return 2
        if os.environ.get("PLANARIA_DEBUG"):
            raise
        return _explain(error)


def _unread() -> int:
    """Whoever read us has gone; say nothing more, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _explain(error: Exception) -> int:
    from planaria.core.errors import PlanariaError

    if isinstance(error, PlanariaError):
        return _complain(str(error), error.exit_code)
    kind = type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return _complain(f"out of memory ({kind}). Use smaller --batch or --inputs, or train=N in the task.", 5)
    return _complain(
        f"unexpected {kind}: {error}\nThis is a bug: please report it with the traceback that --debug shows.",
        5,
    )


def _complain(text: str, code: int) -> int:
    from rich.console import Console  # unlike typer's, its colours respect NO_COLOR

    Console(stderr=True).print(f"planaria: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
    return code
