import json

import pytest

from tap_ray.errors import DataError
from tap_ray.play.schedule import Schedule


def run(schedule, fails=(), stop=None):
    """Attempts in order; those in `fails` are dropped; stops after `stop` of them."""
    made = []
    while pending := schedule.pending():
        for attempt in pending:
            if len(made) == stop:
                return made
            schedule.record(attempt, "missed" if attempt in fails else None)
            made.append(attempt)
    return made


def test_play_is_attempts_0_to_n():
    assert run(Schedule(num_tasks=1, episodes=4)) == [0, 1, 2, 3]


def test_tasks_alternate_and_a_failure_is_made_up_by_one_more_attempt_of_its_task():
    schedule = Schedule(num_tasks=3, episodes=2)
    assert run(schedule, fails={1, 7}) == [0, 1, 2, 3, 4, 5, 7, 10]
    assert schedule.kept == [2, 2, 2]
    assert schedule.tried == [2, 4, 2]
    assert schedule.dropped == [(1, "missed"), (7, "missed")]


@pytest.mark.parametrize("stop", range(9))
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_stored_and_picked_up_again_it_goes_on_alike(stop, num_tasks):
    fails = {1, 7}
    whole = run(Schedule(num_tasks=num_tasks, episodes=3), fails)
    first, second = Schedule(num_tasks=num_tasks, episodes=3), Schedule(num_tasks=num_tasks, episodes=3)
    made = run(first, fails, stop)
    second.restore(json.loads(json.dumps(first.to_json())))
    assert made + run(second, fails) == whole


def test_more_episodes_make_play_longer():
    small, large = Schedule(num_tasks=1, episodes=3), Schedule(num_tasks=1, episodes=6)
    made = run(small, {1})
    large.restore(small.to_json())
    assert made + run(large, {1}) == run(Schedule(num_tasks=1, episodes=6), {1}) == [0, 1, 2, 3, 4, 5, 6]


def test_a_task_that_always_fails_is_given_up_with_its_reason():
    class Never:
        def __contains__(self, attempt):
            return True

    with pytest.raises(
        DataError, match=r"0 of 24 attempts of task number 0 could be kept; the last reason: missed\. Fix that"
    ):
        run(Schedule(num_tasks=1, episodes=1), Never())
