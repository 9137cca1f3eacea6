"""Small policies for tests: the real classes at sizes that train in seconds."""

from tap_ray.models.language import LanguageConfig
from tap_ray.models.policy import PolicyConfig
from tap_ray.models.vision import VisionConfig
from tests.moving_square import SIZE

VISION = VisionConfig(widths=(16, 24, 32), stem_width=16)
SMALL = PolicyConfig(
    image_size=SIZE,
    chunk=2,
    vision=VISION,
    goal_stem=VISION,
    language=LanguageConfig(width=64),
    width=32,
    num_layers=1,
    num_context=8,
    head_width=64,
)
