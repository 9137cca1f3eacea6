"""Every benchmark, one after the other, on a small dataset of play made for it. Ratios, not times, are the result.

python -m bench.all
"""

import subprocess
import sys
import tempfile
import time


def run(title: str, *module: str) -> None:
    """One benchmark in its own process, so that none inherits another's memory or threads."""
    print(f"\n== {title}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *module], check=True)
    print(f"   ({time.perf_counter() - start:.0f} s)", flush=True)


def main() -> None:
    """Play, then what reads it, then what learns from it."""
    run("play: the Ray pipeline against bare processes", "bench.bench_play", "--episodes", "120", "--rounds", "2")
    run("memory: pages of 2 MB against pages of 4 kB", "bench.bench_pages", "--rounds", "3")
    with tempfile.TemporaryDirectory(prefix="tap_ray_bench_") as folder:
        data = f"{folder}/play"
        run("a dataset to read", "jobs.collect_play", "--episodes", "200", "--out", data)
        run("stream: Ray Data against torch's DataLoader", "bench.bench_stream", "--data", data)
        run("S3: collection and reading at 40 ms a request", "bench.bench_s3", "--data", data, "--episodes", "128")
        run("train: Ray Train against the same loop without it", "bench.bench_train", "--data", data, "--steps", "150")
    run("serve: a policy behind Ray Serve against the same one in process", "bench.bench_serve")
    run("SIMPLER's twins: our contract against ManiSkill's own loop", "bench.bench_simpler")


if __name__ == "__main__":
    main()
