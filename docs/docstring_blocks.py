"""For `make docs`: what a docstring aligns by hand (slots, shapes, formats) is shown as it stands, not reflowed."""

import re
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"^(Args|Arguments|Returns|Raises|Yields|Attributes|Example|Examples|Note):\s*$")


def blocks(text: str) -> str:
    """`text` with a blank line around each indented block, which makes it a code block; `Args:` and its kin stay.

    >>> blocks("Slots:\\n    dx  m\\nMore.")
    'Slots:\\n\\n    dx  m\\n\\nMore.'
    """
    lines: list[str] = []
    section = inside = False
    for line in text.splitlines():
        indented = line.startswith("    ")
        if line.strip() and not indented:
            section = bool(SECTION.match(line))
        if line.strip() and not section and lines and lines[-1].strip() and indented != inside:
            lines.append("")
        if line.strip():
            inside = indented
        lines.append(line)
    return "\n".join(lines)


class DocstringBlocks(Extension):
    """Applied to every object that the reference shows."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each of them."""
        if obj.docstring is not None:
            obj.docstring.value = blocks(obj.docstring.value)
