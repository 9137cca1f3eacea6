"""Where key points lie, what the context changes of them, and how a tower's maps are joined."""

import pytest
import torch

from tap_ray.models.keypoints import Join, KeyPoints
from tap_ray.models.pointing import pointing_loss


def passing(num: int = 1) -> KeyPoints:
    """Key points whose heat is the map itself: identity blocks, a heat map of weight 1."""
    points = KeyPoints(width=1, num=num, context=1).eval()
    for block in points.blocks:
        torch.nn.init.zeros_(block.conv.weight)
        block.conv.weight.data[0, 0, 1, 1] = 1.0
        for values in (block.conv.bias, block.film.weight, block.film.bias):
            torch.nn.init.zeros_(values)
        block.norm.eps = 0.0
    torch.nn.init.ones_(points.heat.weight)
    torch.nn.init.zeros_(points.heat.bias)
    return points


@pytest.mark.parametrize(
    ("row", "column", "x", "y"), [(0, 0, -1, -1), (0, 4, 1, -1), (4, 0, -1, 1), (2, 2, 0, 0), (3, 1, -0.5, 0.5)]
)
def test_a_key_point_is_at_the_hottest_cell(row: int, column: int, x: float, y: float):
    heat = torch.zeros(1, 1, 5, 5)
    heat[0, 0, row, column] = 50.0
    assert passing()(heat, torch.zeros(1, 1))[0][0].tolist() == pytest.approx([x, y, 1.0], abs=1e-5)


def test_two_equal_cells_give_their_middle_and_an_empty_map_no_presence():
    heat = torch.zeros(2, 1, 5, 5)
    heat[0, 0, 0, 0] = heat[0, 0, 0, 4] = 50.0
    both, nothing = passing()(heat, torch.zeros(2, 1))[0].tolist()
    assert both == pytest.approx([0.0, -1.0, 1.0], abs=1e-5)
    assert nothing == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_presence_is_the_tanh_of_the_heat_where_it_looks():
    # 3 cells of heat 0 and one of ln 3: weights 1/6, 1/6, 1/6, 1/2, expected heat ln 3 / 2, tanh of that
    # (sqrt 3 - 1 / sqrt 3) / (sqrt 3 + 1 / sqrt 3) = 1/2; x = y = (1/2 + 1/6) - (1/6 + 1/6) = 1/3.
    heat = torch.tensor([[[[0.0, 0.0], [0.0, 3.0]]]])
    heat[0, 0, 1, 1] = torch.log(torch.tensor(3.0))
    assert passing()(heat, torch.zeros(1, 1))[0][0].tolist() == pytest.approx([1 / 3, 1 / 3, 0.5], abs=1e-5)


def test_all_x_come_first_then_all_y_then_all_presences():
    points = passing(num=2)
    points.heat.weight.data[1] = 0.0  # the second sees nothing: the middle
    heat = torch.zeros(1, 1, 5, 5)
    heat[0, 0, 1, 4] = 50.0
    assert points(heat, torch.zeros(1, 1))[0][0].tolist() == pytest.approx([1, 0, -0.5, 0, 1, 0], abs=1e-5)


def test_the_context_chooses_what_is_found():
    # Channel 0 has its hot cell top left, channel 1 bottom right; a context of +1 silences channel 1, -1 channel 0.
    points = KeyPoints(width=2, num=1, context=1, num_blocks=1).eval()
    [block] = points.blocks
    torch.nn.init.zeros_(block.conv.weight)
    block.conv.weight.data[[0, 1], [0, 1], 1, 1] = 1.0
    torch.nn.init.zeros_(block.conv.bias)
    block.film.weight.data = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    torch.nn.init.zeros_(block.film.bias)
    torch.nn.init.ones_(points.heat.weight)
    torch.nn.init.zeros_(points.heat.bias)
    heat = torch.zeros(1, 2, 3, 3)
    heat[0, 0, 0, 0] = heat[0, 1, 2, 2] = 50.0
    seen = points(heat.expand(2, -1, -1, -1), torch.tensor([[1.0], [-1.0]]))[0].tolist()
    assert seen[0] == pytest.approx([-1, -1, 1], abs=1e-4)
    assert seen[1] == pytest.approx([1, 1, 1], abs=1e-4)


def test_where_the_first_two_look_is_told_as_log_probabilities():
    # Heat 0 in three cells and ln 3 in the fourth: 1/6, 1/6, 1/6, 1/2; the third key point is not among them.
    heat = torch.tensor([[[[0.0, 0.0], [0.0, 3.0]]]])
    heat[0, 0, 1, 1] = torch.log(torch.tensor(3.0))
    _, look = passing(num=3)(heat, torch.zeros(1, 1))
    assert look.shape == (1, 2, 4)
    assert look.exp().flatten().tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2] * 2)


def test_pointing_by_hand():
    """A map of 2 x 2 cells over 8 px: the cells' middles are at 1.5 and 5.5 px."""
    log_p = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(3, 2, 4)
    # Row, column: in the middle of cell 3 (row 1, column 1); half-way between the columns of row 0; beyond the corner.
    px = torch.tensor([[5.5, 5.5], [1.5, 3.5], [0.0, 0.0]])[:, None].expand(3, 2, 2)
    rgb = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)

    def loss(mask: torch.Tensor) -> float:
        return float(pointing_loss(log_p, {"rgb": rgb, "crop_px": px, "crop_px_mask": mask}))

    one = torch.tensor([[True, False], [False, False], [False, False]])
    nats = -torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    expected = [nats[3], (nats[0] + nats[1]) / 2, nats[0]]
    for row in range(3):
        assert loss(one.roll(row, 0)) == pytest.approx(float(expected[row]))
    both = torch.tensor([[True, True], [False, True], [False, False]])
    assert loss(both) == pytest.approx(float(2 * expected[0] + expected[1]) / 3)
    assert loss(torch.zeros(3, 2, dtype=torch.bool)) == 0.0


def plain(join: Join) -> Join:
    for mix in join.proj:
        torch.nn.init.ones_(mix.weight)
        torch.nn.init.zeros_(mix.bias)
    join.norm.eps = 0.0
    return join.eval()


def test_one_map_is_mixed_and_two_meet_at_the_finest_grid():
    fine = torch.tensor([[[[1.0, 2.0], [3.0, -9.0]]]])
    assert plain(Join([1], 1))([fine]).tolist() == [[[[1.0, 2.0], [3.0, 0.0]]]]
    coarse = torch.tensor([[[[10.0]], [[20.0]]]])
    assert plain(Join([1, 2], 1))([fine, coarse]).tolist() == [[[[31.0, 32.0], [33.0, 21.0]]]]


def test_another_number_of_maps_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        Join([1, 2], 1)([torch.zeros(1, 1, 2, 2)])
