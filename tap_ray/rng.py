"""Implements the seed tree: every random number follows from one run seed and a path of names and indices.

No code of the project draws from a global generator, except that models in training draw from torch's, which is seeded
for each step. The same path therefore gives the same numbers on any machine and in any process, with any number of
robots or workers.
"""

import hashlib

import numpy as np


def seed_of(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the node at `path` below `seed`, e.g. `seed_of(0, "play", 17)`.

    Args:
        seed: the run's seed, any integer.
        path: names and indices from the root to the node. `1` and `"1"` are different nodes.

    Returns:
        An integer in [0, 2**63), stable across Python versions and machines (BLAKE2b, not `hash`).
    """
    nodes = [repr(node) if isinstance(node, str) else repr(int(node)) for node in (seed, *path)]  # NumPy's ints too
    text = "\x1f".join(nodes)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """NumPy generator for the node at `path` below `seed`; see `seed_of`."""
    return np.random.default_rng(seed_of(seed, *path))
