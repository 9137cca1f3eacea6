import json

import numpy as np
import pytest

from tap_ray.play.novelty import RoundVisitCounts, episode_visits, novelty


def test_visits_count_steps_in_cells_of_end_effector_and_named_objects():
    ee_pos_T3 = np.array([[0.01, 0.01, 0.01], [0.02, 0.02, 0.02], [0.06, 0.0, 0.0]])
    poses = np.zeros((3, 2, 7))
    poses[:, 0, :3] = 0.12
    visits = episode_visits(ee_pos_T3, poses, "spoon,", 0.05)
    assert visits == {"hand:0,0,0": 2, "hand:1,0,0": 1, "spoon:2,2,2": 3}


def test_novelty_falls_with_the_square_root():
    assert [novelty(n) for n in (0, 3, 99)] == [1.0, 0.5, 0.1]


def test_round_r_sees_rounds_up_to_r_minus_2():
    memory = RoundVisitCounts(2)
    seen = []
    for index in range(8):
        number = index // 2
        seen.append((number, sorted(memory.before(number))))
        memory.add({f"from {index}": 1})
    assert seen[:4] == [(0, []), (0, []), (1, []), (1, [])]
    assert seen[4:6] == [(2, ["from 0", "from 1"])] * 2
    assert seen[6:] == [(3, [f"from {i}" for i in range(4)])] * 2


def test_a_round_is_unknown_until_all_it_sees_is_in():
    memory = RoundVisitCounts(2)
    assert memory.before(1) == {}
    assert memory.before(2) is None
    memory.add({})
    assert memory.before(2) is None
    memory.add({"a": 3})
    assert memory.before(2) == {"a": 3}
    memory.add({"b": 1})
    assert memory.before(2) == {"a": 3}  # the same, however much has come in since
    with pytest.raises(AssertionError, match="round 0 is over"):
        memory.before(0)


@pytest.mark.parametrize("cut", range(9))
def test_stored_and_picked_up_again_it_goes_on_alike(cut):
    whole, first = RoundVisitCounts(3), RoundVisitCounts(3)
    for index in range(9):
        whole.add({f"{index % 4}": index})
    for index in range(cut):
        first.add({f"{index % 4}": index})
    second = RoundVisitCounts.from_json(json.loads(json.dumps(first.to_json())))
    for index in range(cut, 9):
        second.add({f"{index % 4}": index})
    assert json.dumps(second.to_json()) == json.dumps(whole.to_json())
    assert second.before(4) == whole.before(4)
