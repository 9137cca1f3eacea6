"""Settings of jobs.sweep; the contents of its file are `plan.SweepFile`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tap_ray import runs
from tap_ray.config import ONCE_ONE, ClusterConfig


@dataclass(frozen=True, kw_only=True)
class SweepJobConfig(ClusterConfig):
    """Settings of jobs.sweep: the sweep's file, the data, and where it runs."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """YAML file of values and grid / choice / uniform / loguniform, e.g. tune_configs/smoke.yaml."""
    data: tuple[str, ...] = field(default=(), metadata=ONCE_ONE)
    """Datasets of play, PATH or PATH:WEIGHT, behind the sweep's file on the command line; without it those that the
    file names."""
    demos: Path | None = None
    """Dataset of demonstrations; without it the one in the sweep's file."""
    out: Path | None = None
    """Run folder; without it <store>/sweep-<hash>."""
    results: Path | None = None
    """Folder for <name of the sweep>.md, .json and .png, e.g. docs/results; without it <out>/results."""
    store: Path = runs.STORE
    """Folder or URI of the stages' run folders; sweeps that share it never train the same run twice."""
    dry_run: bool = False
    """Print the trials and an estimate of the time of each, from rates measured in the store, without starting
    anything."""
    max_concurrent_trials: int = 0
    """Number of trials that run at the same time; 0: as many as fit into the cluster, up to the limits of its
    autoscaler."""
    dashboard: bool = False
    """Serve the dashboard of a local Ray, on loopback; the page links to it. It asks for the token of
    `ray get-auth-token`."""
    trials_on: Literal["auto", "head", "any"] = "auto"
    """Nodes that trials' processes (not their training) live on: "any" needs folders and an MLflow that every node
    reaches; "auto": any if --store, --out and the data are URIs and MLflow is a server, else the head node."""
