"""Formats tables as text."""

from typing import Any, Sequence


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], last: str = "n") -> str:
    """Align rows of text in columns: the name, a value for each heading, and one under `last`."""
    first, *others = columns([("", *headings, last), *rows])
    return "\n".join((first, "-" * len(first), *others))


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A line for each row; the first `left` columns begin at their left edge, the others end at their right one."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; also readable in a terminal."""
    cells = [list(rows[0]), *([as_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def as_text(value: Any) -> str:
    """The text of a cell: three digits of a number, "-" for None."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
