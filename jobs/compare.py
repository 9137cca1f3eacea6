"""Compare policies evaluated with one protocol: the paper's table, paired tests, learning curves, an HTML page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tap_ray.compare import report
from tap_ray.compare.reading import read_runs
from tap_ray.compare.tables import text_table
from tap_ray.job import job_run, run_job
from tap_ray.runs import MadeBy


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of jobs.compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders of jobs.evaluate; training runs may be named as well, for their learning curves."""
    out: Path | None = None
    """Run folder; without it runs/compare-<hash>."""


def main(config: Config) -> Path:
    """Write the page and print the table; returns the run folder."""
    results, _ = read_runs(config.runs)
    parents: dict[str, Path | str] = {f"run{number}": path for number, path in enumerate(config.runs)}
    # The contents of the runs determine the page.
    what = {"runs": [str(path) for path in config.runs], "out": str(config.out)}
    made_by = MadeBy(identity={}, runtime=what)
    with job_run("compare", config, made_by=made_by, parents=parents, rewrites=True) as run:
        report.write(config.runs, run.path)
        run.artifact(report.REPORT)
    if results:
        print(text_table(results))
    print(f"open {run.path / report.REPORT}")
    return run.path


if __name__ == "__main__":
    run_job(main, Config)
