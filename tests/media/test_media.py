"""Images enlarged and titled, and tables as text, by hand."""

import numpy as np

from tap_ray.media.image import BAR_PX, enlarged, panel, text_bar
from tap_ray.media.text_table import grid, markdown


def test_images_grow_by_whole_factors_and_never_shrink():
    rgb = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    twice = enlarged(rgb, 5)
    assert twice.shape == (1, 4, 4, 3)
    assert twice[0, :, :, 0].tolist() == [[0, 0, 3, 3], [0, 0, 3, 3], [6, 6, 9, 9], [6, 6, 9, 9]]
    np.testing.assert_array_equal(enlarged(rgb, 1), rgb)


def test_a_panel_has_its_words_above_it_and_even_sides():
    rgb = np.full((2, 3, 3, 3), 9, np.uint8)
    made = panel(rgb, "title", "end", side_px=3, color=(255, 0, 0))
    assert made.shape == (2, 2 * BAR_PX + 4, 4, 3)
    assert (made[:, 2 * BAR_PX : -1, :3] == 9).all()
    assert not made[:, -1].any()
    wide = text_bar(100, "title", "end", color=(255, 0, 0))
    assert wide[:BAR_PX].max() > 200
    assert wide[BAR_PX:, :, 0].max() > 200
    assert not wide[BAR_PX:, :, 1:].any(), "only the last line has the color"


def test_tables_by_hand():
    rows = [("one", "1.0", "24"), ("another", "10.0", "3")]
    assert grid(["rate"], rows).splitlines() == [
        "         rate   n",
        "-----------------",
        "one       1.0  24",
        "another  10.0   3",
    ]
    assert markdown([{"name": "a", "value": 0.12345}, {"name": "bc", "value": None}]).splitlines() == [
        "| name | value |",
        "|------|-------|",
        "| a    | 0.123 |",
        "| bc   | -     |",
    ]
