"""One file for each command: `python -m jobs.collect_play --help`."""

import sys
from importlib.util import find_spec
from pathlib import Path

# Other projects have a package named envs as well, and the wrong one must not be used silently.
_ours, _found = Path(__file__).resolve().parents[1] / "envs", find_spec("envs")
_folder = Path(_found.origin).resolve().parent if _found and _found.origin else None
if _folder != _ours:
    _text = (
        f"The jobs need the package envs of tap_ray at {_ours}, but `import envs` finds {_folder or 'none'}. Start "
        "the job from another working directory, or put tap_ray's folder first in PYTHONPATH."
    )
    if sys.argv[0] != "-m":  # sys.argv[0] while `python -m jobs.<verb>` imports this package
        raise ImportError(_text)
    print(f"error: {_text}", file=sys.stderr)
    sys.exit(2)
