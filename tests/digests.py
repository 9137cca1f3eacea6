"""What two datasets of the same bytes have in common."""

import hashlib
from pathlib import Path

from tap_ray import storage
from tap_ray.locks import LOCK_FILE


def digests(path: Path, *, skip: str | None = None) -> dict[str, str]:
    """Path -> sha256 of every file below a folder or URI, but for a local lock and names that begin with `skip`."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name != LOCK_FILE]
    files = [file for file in files if skip is None or not file.name.startswith(skip)]
    contents = storage.read_all(files)
    return {str(f.relative_to(path)): hashlib.sha256(c).hexdigest() for f, c in zip(files, contents, strict=True)}
