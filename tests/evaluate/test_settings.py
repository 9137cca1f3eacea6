"""What `--scenario all` asks for."""

import pytest

import envs
from tap_ray.errors import ConfigError
from tap_ray.evaluate.protocol import Protocol, cells, check
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of


def asked(*scenario: str) -> Protocol:
    config = EvaluateConfig(policy="expert", scenario=scenario, episodes=2)
    return protocol_of(config, suite_tasks=envs.TASKS, env_version="1", known_scenarios=envs.SCENARIOS)


def test_all_are_five_the_standard_one_first() -> None:
    every = asked("all")
    assert every.scenarios == ("standard", "initial_state", "distractors", "background", "viewpoint")
    assert every.hash == asked(*every.scenarios).hash
    check(every, known_tasks=envs.TASKS, check_scene=envs.check)
    assert len(cells(every)) == 5 * 5 * 2
    assert set(cells(asked("standard"))) < set(cells(every))


def test_all_stands_alone() -> None:
    with pytest.raises(ConfigError, match=r"--scenario all stands alone; got standard all\."):
        asked("standard", "all")


def test_an_unknown_scenario_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown scenario 'distractor'\. Did you mean 'distractors'\?"):
        check(asked("distractor"), known_tasks=envs.TASKS, check_scene=envs.check)
