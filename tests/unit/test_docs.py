"""What the README and the pages of docs/ show is run, or at least understood, by the program they describe.

Blocks marked `python` run from top to bottom, one namespace per file, in a folder of their own. In `bash`
blocks every `planaria` command must parse and every `make` target must exist; a block after `<!-- run -->` is
run as well. A block after `<!-- not run: reason -->` is left alone.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>run|not run: [^\n]+?) -->\s*\n)?"
    r"^(?P<indent>[ \t]*)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    mark: str
    body: str


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            page,
            text.count("\n", 0, match.start("body")) + 1,
            match["language"],
            match["mark"] or "",
            textwrap.dedent(match["body"]),
        )
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language in languages and not block.mark.startswith("not run")]


def name(value: Block | Path) -> str:
    page, line = (value.page, f":{value.line}") if isinstance(value, Block) else (value, "")
    return f"{page.relative_to(ROOT)}{line}"


def commands(script: str) -> Iterator[list[str]]:
    """The simple commands of a shell script, as words, without prompts, assignments and redirections."""
    for line in script.replace("\\\n", " ").splitlines():
        line = re.sub(r"(?<=\s)\d?(>>?|<)&?\s*\S+", "", line.removeprefix("$ "))
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        for separator, command in itertools.groupby(words, key={";", "|", "&", "&&", "||"}.__contains__):
            words_only = itertools.dropwhile(re.compile(r"\w+=").match, command)
            if not separator and (found := list(words_only)):
                yield found


def complaint(arguments: list[str]) -> str:
    """What the command line says against `planaria ARGUMENTS`, without doing it; "" where it understands."""
    from planaria.cli.app import app

    group = typer.main.get_command(app)
    if arguments and arguments[0] in {"--install-completion", "--show-completion"}:
        # these act while they are parsed, so that it is only looked whether they exist
        known = {option for parameter in group.params for option in parameter.opts}
        return "" if arguments[0] in known else f"no such option: {arguments[0]}"
    try:
        context = group.make_context("planaria", list(arguments))
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        _, command, rest = group.resolve_command(context, rest)  # type: ignore[attr-defined]
        command.make_context(arguments[0], rest, parent=context)
    except typer.Exit:
        return ""  # --help and --version answer at once
    except Exception as error:
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_python_blocks_of_a_page_run_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        # the empty lines make a traceback point into the page
        code = compile("\n" * (block.line - 1) + block.body, str(page), "exec", dont_inherit=True)
        exec(code, namespace)


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "bash", "sh")], ids=name)
def test_the_commands_of_a_block_are_understood(block: Block) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *arguments in commands(block.body):
        if program == "planaria":
            assert complaint(arguments) == "", shlex.join(["planaria", *arguments])
        elif program == "make":
            assert {word for word in arguments if "=" not in word} <= set(targets)


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in blocks(page, "bash", "sh") if block.mark == "run"],
    ids=name,
)
def test_the_blocks_marked_to_run_end_well(block: Block, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "planaria"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m planaria "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    script = re.sub(r"^\$ ", "", block.body, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        marks = re.findall(r"<!--\s*(not run.*?)\s*-->", page.read_text(encoding="utf-8"))
        assert all(re.fullmatch(r"not run: \w.+", mark) for mark in marks), page


def test_a_misspelt_option_or_command_in_a_page_would_be_noticed() -> None:
    assert "no such option" in complaint(["rescue", "--sedes", "5"]).lower()
    assert "no such command" in complaint(["resuce"]).lower()
    assert complaint(["rescue", "--seeds", "5"]) == ""


def test_commands_are_found_among_what_shells_allow() -> None:
    script = (
        "# prepare\n$ make demo  # first\n"
        "A=1 planaria rescue --doses 0.3,0.5 \\\n  --json --seeds 5 > out.json 2>&1 | tail -1\n"
    )
    assert list(commands(script)) == [
        ["make", "demo"],
        ["planaria", "rescue", "--doses", "0.3,0.5", "--json", "--seeds", "5"],
        ["tail", "-1"],
    ]


def test_blocks_are_found_with_their_marks_and_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\na = 1\n```\n\n<!-- not run: needs a GPU -->\n```python\nb\n```\n"
        "\n<!-- run -->\n\n```bash\nplanaria doctor\n```\n\n- item\n  ```python\n  c = 1\n  ```\n"
    )
    found = blocks(page, "python", "bash")
    assert [(block.line, block.mark, block.body) for block in found] == [
        (4, "", "a = 1\n"),
        (15, "run", "planaria doctor\n"),
        (20, "", "c = 1\n"),
    ]
