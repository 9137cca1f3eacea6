"""Tables as text."""

from typing import Any, Sequence


def grid(headings: Sequence[str], rows: Sequence[Sequence[str]], last: str = "n") -> str:
    """Rows of text (name, a value a heading, one under `last`) in columns."""
    table = [("", *headings, last), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines: list[str] = []
    for row in table:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join((first, *rest)).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; also readable in a terminal."""
    cells = [list(rows[0]), *([as_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def as_text(value: Any) -> str:
    """A cell: three digits of a number, "-" for None."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
