"""Reads row groups (episodes) of Parquet files on an object store: only the bytes of the requested columns.

A file's footer says where each column of each row group lies. Row groups are fetched, and kept by `tap_ray.cache`, in
pieces: a large feature (images) is a piece of its own, small ones are grouped with their neighbors.

    | image | mask | state, action, contact | object_pose, timestamp, ... |    one row group; each | | is a piece
"""

import io
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tap_ray.cache import Range, read_ranges

SMALL = 8192
"""Largest size of a piece of several neighboring features, bytes."""
GAP = 16384
"""Largest size of an unneeded piece between two needed ones that is fetched too, to save a request, bytes."""
TAIL = 65536
"""Number of bytes at the end of a file that are fetched first; more if its footer is longer (1.2 kB per episode)."""


class File(NamedTuple):
    """One version of a remote Parquet file; see `storage.versions`."""

    path: Path
    version: str


class _Piece(NamedTuple):
    start: int
    end: int
    features: frozenset[str]


class _Footer(NamedTuple):
    about: pq.FileMetaData
    feature: tuple[str, ...]
    """Feature of each column chunk in a row group."""


def footer(file: File) -> pq.FileMetaData:
    """A file's footer, which describes its row groups.

    Raises:
        pa.ArrowException: the file is truncated, or not Parquet.
        Exception: see `cache.read_ranges`.
    """
    return read_footer(file).about


def read_row_group(file: File, group: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of a row group; columns that the file does not have are left out.

    Raises:
        IndexError: there is no such row group. pa.ArrowException: the file is damaged.
        Exception: see `cache.read_ranges`.
    """
    ranges = _ranges(file, group, columns)
    pieces = dict(zip([each.start for each in ranges], read_ranges(ranges), strict=True))
    with pq.ParquetFile(_Pieces(pieces), metadata=footer(file), pre_buffer=False) as parquet:
        return parquet.read_row_group(group, columns=list(columns))


def fetch(row_groups: Sequence[tuple[File, int]], columns: Sequence[str]) -> None:
    """Fetch columns of many row groups at once, so that `read_row_group` finds them on this machine.

    Raises:
        Exception: as `read_row_group`.
    """
    read_ranges([_tail(file) for file in dict(row_groups)])
    read_ranges([each for file, group in row_groups for each in _ranges(file, group, columns)])


def _tail(file: File) -> Range:
    return Range(*file, -TAIL, None)


@lru_cache(maxsize=64)
def read_footer(file: File) -> _Footer:
    """A file's footer, parsed once for many episodes."""
    [tail] = read_ranges([_tail(file)])
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] == b"PAR1" and length > len(tail) == TAIL:
        [tail] = read_ranges([Range(*file, -length, None)])
    about = pq.read_metadata(pa.BufferReader(tail))
    names = sorted(about.schema.to_arrow_schema().names, key=len)
    leaves = [about.schema.column(i).path for i in range(about.num_columns)]
    return _Footer(about, tuple([name for name in names if f"{leaf}.".startswith(f"{name}.")][-1] for leaf in leaves))


def _ranges(file: File, group: int, columns: Sequence[str]) -> list[Range]:
    pieces = _pieces(read_footer(file), group)
    selected = [bool(piece.features & {*columns}) for piece in pieces]
    for i in range(1, len(pieces) - 1):
        selected[i] |= selected[i - 1] and any(selected[i:]) and pieces[i].end - pieces[i].start <= GAP
    return [Range(*file, piece.start, piece.end) for piece, yes in zip(pieces, selected, strict=True) if yes]


def _pieces(footer: _Footer, group: int) -> list[_Piece]:
    about = footer.about.row_group(group)
    chunks = [about.column(i) for i in range(about.num_columns)]
    found: list[_Piece] = []
    for feature, columns in groupby(range(len(chunks)), lambda i: footer.feature[i]):
        parts = [chunks[i] for i in columns]
        start = min(_start(part) for part in parts)
        end = max(_start(part) + part.total_compressed_size for part in parts)
        if found and found[-1].end == start and end - found[-1].start <= SMALL:
            found[-1] = _Piece(found[-1].start, end, found[-1].features | {feature})
        else:
            found.append(_Piece(start, end, frozenset([feature])))
    return found


def _start(chunk: Any) -> int:
    return min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)


class _Pieces(io.RawIOBase):
    """A file of which only some pieces are known."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        super().__init__()
        self._pieces, self._at = pieces, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = max((start + len(piece) for start, piece in self._pieces.items()), default=0)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read from one piece; without a buffer Arrow reads one column of a row group at a time."""
        start = max((start for start in self._pieces if start <= self._at), default=None)
        if start is None:
            return b""
        rest = self._pieces[start][self._at - start :]
        content = rest if size < 0 else rest[:size]
        self._at += len(content)
        return content
