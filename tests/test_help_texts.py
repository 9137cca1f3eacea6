"""--help shows the docstrings of fields as paragraphs."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tap_ray.command_line import Offers, parse
from tap_ray.help_texts import paragraphs


@dataclass(frozen=True, kw_only=True)
class Inner:
    speed: float = 0.1
    """Speed of the end effector, which is limited by
    the motors, m/s."""


@dataclass(frozen=True, kw_only=True)
class Base:
    steps: int = 3
    """Steps that are taken, one
    after another."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    out: Path | None = None
    """Folder of the
    results.

    A second paragraph."""
    inner: Inner = field(default_factory=Inner)
    """Settings of the
    robot."""


def main(config: Config) -> Path:
    raise AssertionError("--help ends before the job starts")


def test_help_has_no_line_breaks_of_the_source(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse(main, Config, ["--help"], Offers())
    output = capsys.readouterr().out
    for sentence in (
        "Steps that are taken, one after another. (default: 3)",
        "Speed of the end effector, which is limited by the motors, m/s. (default: 0.1)",
        "Folder of the results.",
        "A second paragraph. (default: None)",
        "Settings of the robot.",
    ):
        assert sentence in output


def test_empty_lines_part_paragraphs():
    assert paragraphs("One\n    line.\n\n    Two\n    lines.") == "One line.\n\nTwo lines."
