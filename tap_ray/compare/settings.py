"""Settings of jobs.compare."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of jobs.compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of jobs.evaluate; training runs may be named as well, for their learning curves."""
    out: Path | None = None
    """Run folder; without it runs/compare-<hash>."""
