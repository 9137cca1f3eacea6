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
    language=LanguageConfig(width=64),
    num_context=8,
    context_width=32,
    map_width=16,
    num_keypoints=12,
    glimpse_px=8,
    num_state=0,
    head_width=64,
)
