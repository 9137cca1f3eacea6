"""LeRobotDataset v3.0: the format's public names, and the command that checks and repairs a dataset.

    python -m tap_ray.dataset.lerobot verify PATH [--repair]

Exit status 0: every rule holds. 1: a rule is broken, or a repair was refused. 2: PATH is not a dataset.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

from tap_ray import storage
from tap_ray.dataset.layout import ACTION, CONTACT, IMAGE, MASK, OBJECT_POSE, STATE, DatasetHeader
from tap_ray.dataset.reader import DatasetInfo, open_dataset, read_episode
from tap_ray.dataset.recovery import repair
from tap_ray.dataset.verify import Rule, verify
from tap_ray.dataset.writer import DatasetWriter
from tap_ray.errors import DataError, TapRayError

__all__ = [
    "ACTION",
    "CONTACT",
    "IMAGE",
    "MASK",
    "OBJECT_POSE",
    "STATE",
    "DatasetHeader",
    "DatasetInfo",
    "DatasetWriter",
    "Rule",
    "open_dataset",
    "read_episode",
    "repair",
    "verify",
]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = ArgumentParser(prog="python -m tap_ray.dataset.lerobot", description="Check a LeRobot v3.0 dataset.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("verify", help="check every rule of the format and print one line for each")
    verb.add_argument("path", help="folder or URI of the dataset (with meta/ and data/)")
    verb.add_argument(
        "--repair",
        action="store_true",
        help="first remove what an interrupted writer left, and write derived files again",
    )
    flags = parser.parse_args(arguments)
    try:
        path = storage.to_path(flags.path)
        storage.require_reachable(path)
        if not (path / "meta").is_dir():
            raise DataError(f"There is no dataset at {path}: it has no folder meta/. Give a folder that has one.")
    except TapRayError as error:
        print(error, file=sys.stderr)
        return 2
    repaired = not flags.repair or _repair(path)
    status = report(verify(path))
    return status if repaired else 1


def _repair(path: Path) -> bool:
    """Repair a dataset; returns whether that succeeded."""
    try:
        for line in repair(path):
            print(f"repaired  {line}")
    except TapRayError as error:
        print(f"cannot repair: {error}")
        return False
    return True


def report(rules: list[Rule]) -> int:
    """Print a line for each rule and what to do about the broken ones; 0 if all hold, else 1."""
    for rule in rules:
        print(f"{'broken' if rule.problems else 'ok':<9} {rule.name}")
        for problem in rule.problems:
            print(f"{'':<12}{problem}")
        if rule.problems:
            print(f"{'':<10}-> {rule.remedy}")
    broken = sum(bool(rule.problems) for rule in rules)
    print(f"{len(rules)} rules checked, {broken} broken" + (", the others were not checked" if broken else ""))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
