"""Play and training for hours on one cluster, something killed each minute: nothing lost, nothing doubled, memory flat.

    python -m tests.distributed.soak [--minutes 120] [--out runs/soak]       (make soak)

Two jobs run side by side, again and again: a collection of play and a pretraining. Both have run once undisturbed
before; each time the dataset must be the same to the byte and the training's curve the same to the digit. What is
killed: a fleet, a training worker, a process of Ray Data, or a job itself, whose command is then given again. The same
command as this one resumes where it was interrupted.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from tap_ray.config import digest
from tap_ray.training import session
from tests.digests import digests
from tests.s3 import free_port

KINDS = {
    "fleet": ("ray::Fleet",),
    "training worker": ("ray::RayTrainWorker",),
    "data task": ("ray::MapBatches",),
}
"""What is killed -> how the titles of its processes begin."""
SERVICES = ("gcs_server", "raylet", "dashboard", "agent")
"""Ray's own processes whose memory is watched."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How long, and how rough."""

    minutes: float = 120.0
    """Of play and training under kills, over all lives of this program, min."""
    kill_every_s: float = 60.0
    """Time between two kills, s."""
    seed: int = 0
    """Of what is killed, and when."""
    out: Path = Path("runs/soak")
    """Folder for everything."""


class Log:
    """One JSON object a line: what was killed, which round ended how, how much memory Ray's services have."""

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self.lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def add(self, kind: str, **values: Any) -> None:
        with self._lock, self._file.open("a") as file:
            line = {"kind": kind, "at_s": round(time.time(), 1), **values}
            self.lines.append(line)
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]


class Job:
    """A command that is given again until it has ended well."""

    def __init__(self, name: str, command: list[str], result: Callable[[Path], str], out: Path) -> None:
        self.name, self.process = name, None
        self._command, self._result, self._out = command, result, out
        self.killed = threading.Event()

    def run(self, folder: Path, stop: threading.Event) -> str | None:
        """The digest of what it made; None if it was told to stop.

        Raises:
            RuntimeError: it ended badly, and nobody had killed it.
        """
        while not stop.is_set():
            with (self._out / f"{self.name}.log").open("a") as log:
                self.killed.clear()
                self.process = subprocess.Popen(
                    [sys.executable, *self._command, "--out", str(folder)], stdout=log, stderr=log
                )
                while self.process.poll() is None and not stop.wait(0.2):
                    pass
            if self.process.poll() == 0:
                return self._result(folder)
            if not stop.is_set() and not self.killed.is_set():
                raise RuntimeError(f"{self.name} ended with status {self.process.returncode}: see {self.name}.log")
        return None

    def end(self) -> None:
        """Kill the job as a memory monitor would."""
        self.killed.set()
        if self.process is not None:
            self.process.kill()


def bytes_of(folder: Path) -> str:
    """Digest of every file of a dataset."""
    return digest({part: digests(folder / part) for part in ("data", "meta")})


def curve_of(folder: Path) -> str:
    """Digest of what a training has logged, but for times."""
    lines = session.read_metrics(folder / session.METRICS)
    kept = [{k: v for k, v in line.items() if not k.endswith(("_s", "_pct"))} for line in lines]
    return digest(kept)


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, psutil.Process]]:
    """A head of two CPUs in processes of its own; its address."""
    port = free_port()
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--head", "--num-cpus=2"]
    ray += [f"--port={port}", "--include-dashboard=false", "--object-store-memory=500000000"]
    ray += ["--min-worker-port=0", "--max-worker-port=0"]
    # Its GCS keeps 3.8 kB for each ended task: with a bound that minutes reach, what still grows after hours is a leak.
    environment = {**os.environ, "RAY_task_events_max_num_task_in_gcs": "1000"}
    head = subprocess.Popen(ray, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.2)
        time.sleep(5)  # a raylet joins after its GCS
        yield f"127.0.0.1:{port}", psutil.Process(head.pid)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()


def titled(head: psutil.Process, beginnings: tuple[str, ...]) -> list[psutil.Process]:
    """Processes of the cluster whose titles begin so."""
    found = []
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(beginnings):
                found.append(process)
    return found


def kill_one(head: psutil.Process, jobs: list[Job], draw: random.Random, log: Log) -> None:
    """Kill something that is there."""
    ways: dict[str, Callable[[], None]] = {f"job: {job.name}": job.end for job in jobs if job.process is not None}
    for kind, beginnings in KINDS.items():
        if found := titled(head, beginnings):
            ways[kind] = draw.choice(found).kill
    kind = draw.choice(sorted(ways))
    with contextlib.suppress(psutil.NoSuchProcess):
        ways[kind]()
        log.add("kill", what=kind)


def memory_mb(head: psutil.Process) -> dict[str, float]:
    """Resident memory of Ray's services, MB."""
    found: Counter[str] = Counter()
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            name = next((name for name in SERVICES if name in line.split(" --")[0]), None)
            if name and not line.startswith("ray::"):
                found[name] += process.memory_info().rss / 1e6
    return {name: round(mb, 1) for name, mb in found.items()}


def again(job: Job, expected: str, out: Path, log: Log, stop: threading.Event) -> None:
    """Round after round until told to stop; each must give what the undisturbed one gave."""
    number = sum(line["job"] == job.name for line in log.of("round"))
    try:
        while not stop.is_set():
            began = time.monotonic()
            folder = out / f"{job.name}-{number}"
            made = job.run(folder, stop)
            if made is not None:
                log.add("round", job=job.name, same=made == expected, seconds=round(time.monotonic() - began))
                if made == expected:
                    shutil.rmtree(folder)
                number += 1
    except RuntimeError as error:
        log.add("failure", job=job.name, error=str(error))


def report(log: Log) -> str:
    """What was killed how often, how many rounds were the same, and the memory at the beginning and the end."""
    rounds, memory = log.of("round"), log.of("memory")
    lines = [f"{sum(line['minutes'] for line in log.of('lived')):.0f} minutes"]
    lines += [f"killed  {what:<22} {n:>4}" for what, n in sorted(Counter(k["what"] for k in log.of("kill")).items())]
    for job in ("play", "train"):
        same = [line["same"] for line in rounds if line["job"] == job]
        lines.append(f"rounds  {job:<22} {len(same):>4}, the same as undisturbed: {sum(same)}")
    lines += [f"failure {line['job']}: {line['error']}" for line in log.of("failure")]
    quarter = max(1, len(memory) // 4)
    for name in SERVICES:
        first, last = ([m["mb"].get(name, 0.0) for m in part] for part in (memory[:quarter], memory[-quarter:]))
        if first and any(last):
            lines.append(f"memory  {name:<22} {statistics.median(first):.0f} -> {statistics.median(last):.0f} MB")
    return "\n".join(lines)


def main(config: Config) -> int:
    """Soak; 0 if every round was the same and nothing failed."""
    config.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(config.out / 'mlflow.db').resolve()}")
    log, stop = Log(config.out / "log.jsonl"), threading.Event()
    draw = random.Random(f"{config.seed} {len(log.lines)}")
    with cluster() as (address, head):
        play = ["-m", "jobs.collect_play", "--episodes", "64", "--explorer", "contact", "--ray-address", address]
        train = ["-m", "jobs.pretrain", "--data", str(config.out / "play"), "--steps", "120", "--batch-size", "16"]
        train += ["--log-every", "10", "--checkpoint-every", "20", "--validate-every", "60", "--ray-address", address]
        train += ["--max-failures", "-1"]  # on a busy machine a life may be shorter than the way to a checkpoint
        jobs = [Job("play", play, bytes_of, config.out), Job("train", train, curve_of, config.out)]
        expected = [job.run(config.out / job.name, stop) for job in jobs]
        print(f"undisturbed: {expected}", flush=True)
        threads = [
            threading.Thread(target=again, args=(job, undisturbed, config.out, log, stop))
            for job, undisturbed in zip(jobs, expected, strict=True)
        ]
        for thread in threads:
            thread.start()
        left_s = 60 * (config.minutes - sum(line["minutes"] for line in log.of("lived")))
        while left_s > 0 and all(thread.is_alive() for thread in threads):
            nap_s = min(left_s, draw.uniform(0.5, 1.5) * config.kill_every_s)
            time.sleep(nap_s)
            left_s -= nap_s
            kill_one(head, jobs, draw, log)
            log.add("memory", mb=memory_mb(head))
            log.add("lived", minutes=nap_s / 60)
        stop.set()
        for job in jobs:
            job.end()
        for thread in threads:
            thread.join()
    print(report(log))
    return int(bool(log.of("failure")) or not all(line["same"] for line in log.of("round")))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
