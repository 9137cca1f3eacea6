"""What all tests share: ManiSkill's files, where this workplace has them."""

import os
from pathlib import Path

ASSETS = Path(__file__).parents[2] / "shared" / "maniskill_assets"
if ASSETS.is_dir():
    os.environ.setdefault("MS_ASSET_DIR", str(ASSETS))
