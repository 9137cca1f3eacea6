"""Compare policies evaluated with one protocol: the paper's table, paired tests, learning curves, an HTML page."""

from pathlib import Path

from tap_ray.compare import report
from tap_ray.compare.reading import read_runs
from tap_ray.compare.settings import CompareConfig
from tap_ray.compare.tables import text_table
from tap_ray.job import job_run, run_job
from tap_ray.runs import MadeBy


def main(config: CompareConfig) -> Path:
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
    run_job(main, CompareConfig)
