"""Runs the mistakes of bad_cases.py, and shows what they end in: tests/jobs/bad_input.md.

    python -m tests.jobs.bad_input        writes that file from what the jobs say now: read the difference

A case makes the bad thing in a folder of good ones and runs the real job there. The command and all that it says is
what the document shows; tests/jobs/test_bad_input.py compares the two.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tests.jobs.bad_cases import CASES, GROUPS, Case, shop

DOCUMENT = Path(__file__).with_name("bad_input.md")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    output: str
    """The command, and what it wrote on stderr (or, for verify, on stdout), with the shop's path left out."""


def no_ray() -> contextlib.AbstractContextManager[object]:
    """Whatever is wrong must be said before a Ray starts."""
    return mock.patch("tap_ray.distributed.connect.start_local", side_effect=AssertionError("a Ray was started"))


@contextlib.contextmanager
def taken_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def run(case: Case, good: Path, here: Path) -> Ended:
    """Run a case in a fresh copy of the shop, in this process, as `python -m` would."""
    shutil.copytree(good, here)
    if case.make is not None:
        case.make(here)
    with taken_port() as port:
        argv = shlex.split(case.command.replace("PORT", str(port)))[2:]
        out, err, status = io.StringIO(), io.StringIO(), 0
        kept = os.getcwd(), sys.argv, dict(os.environ)
        clean = {"COLUMNS": "120", "MLFLOW_TRACKING_URI": f"sqlite:///{here}/mlflow.db"}
        os.environ.update(clean | dict(case.env))
        os.environ.pop("RAY_ADDRESS", None)
        os.chdir(here)
        try:
            sys.argv = argv
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), no_ray():
                warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
                runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            os.chdir(kept[0])
            sys.argv = kept[1]
            os.environ.clear()
            os.environ.update(kept[2])
    output = out.getvalue() if "verify demos" in case.command else err.getvalue()
    output = output.replace(f"{here.resolve()}/", "").replace(str(port), "PORT")
    output = re.sub(r"\(\d+ bytes\)", "(N bytes)", re.sub(r"there are \d+ CPUs", "there are N CPUs", output))
    return Ended(status, f"$ {case.command}\n{_plain(output)}")


def _plain(text: str) -> str:
    """Without tyro's box and colors."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│ ").rstrip() if line.startswith("│") else line.rstrip() for line in text.splitlines()]
    return "\n".join(
        line for line in lines if not re.fullmatch(r"[╭╰─╮╯]*( Parsing error ─*╮| Required options ─*╮| .* ─+╮)?", line)
    )


def document(outputs: Mapping[str, str]) -> str:
    """tests/jobs/bad_input.md."""
    parts = [
        "# What jobs say to bad input\n\n"
        f"{len(outputs)} mistakes, each with the command and all that it says. Each ends with exit status 2 (a broken "
        "rule\nthat `verify` finds: 1), before Ray starts and without a traceback. `python -m tests.jobs.bad_input` "
        "writes this file,\n`tests/jobs/test_bad_input.py` runs every case and compares.\n"
    ]
    for group, cases in GROUPS.items():
        parts.append(f"\n## {group}\n")
        parts += [f"\n**{case.name}**\n\n```\n{outputs[f'{group}: {case.name}']}\n```\n" for case in cases]
    return "".join(parts)


def documented(text: str) -> dict[str, str]:
    """Inverse of `document`."""
    found: dict[str, str] = {}
    for section in text.split("\n## ")[1:]:
        group = section.splitlines()[0]
        for name, block in re.findall(r"\n\*\*(.+?)\*\*\n\n```\n(.*?)\n```\n", section, re.DOTALL):
            found[f"{group}: {name}"] = block
    return found


def main() -> None:
    """Run every case and write the document."""
    with tempfile.TemporaryDirectory() as folder:
        good = shop(Path(folder) / "good")
        outputs = {}
        for number, (name, case) in enumerate(CASES.items()):
            try:
                ended = run(case, good, Path(folder) / str(number))
            except BaseException as error:  # noqa: BLE001  what is to be fixed first
                print(f"!! {name}: {type(error).__name__}: {str(error)[:300]}")
                outputs[name] = f"$ {case.command}\n{type(error).__name__}"
                continue
            outputs[name] = ended.output
            if ended.status != (1 if "verify demos" in case.command else 2):
                print(f"!! {name}: exit status {ended.status}: {ended.output}")
    DOCUMENT.write_text(document(outputs))


if __name__ == "__main__":
    main()
