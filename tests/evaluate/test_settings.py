"""What `--scenario all` asks for."""

import pytest

import envs
from tap_ray.errors import ConfigError
from tap_ray.evaluate.protocol import SUITES, Protocol, cells, check
from tap_ray.evaluate.settings import EvaluateConfig, protocol_of, simulator


def protocol_with(*scenario: str) -> Protocol:
    config = EvaluateConfig(policy="expert", scenario=scenario, episodes=2)
    return protocol_of(config, sim="pybullet", suite_tasks=envs.TASKS, env_version="1", known_scenarios=envs.SCENARIOS)


def test_all_are_five_the_standard_one_first() -> None:
    every = protocol_with("all")
    assert every.scenarios == ("standard", "initial_state", "distractors", "background", "viewpoint")
    assert every.hash == protocol_with(*every.scenarios).hash
    check(every, known_tasks=envs.TASKS, check_scene=envs.check)
    assert len(cells(every)) == 5 * 5 * 2
    assert set(cells(protocol_with("standard"))) < set(cells(every))


def test_all_stands_alone() -> None:
    with pytest.raises(
        ConfigError, match=r"--scenario all cannot be combined with other scenarios; got standard all\."
    ):
        protocol_with("standard", "all")


def test_an_unknown_scenario_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown scenario 'distractor'\. Did you mean 'distractors'\?"):
        check(protocol_with("distractor"), known_tasks=envs.TASKS, check_scene=envs.check)


def test_a_suite_runs_in_the_simulators_that_have_it() -> None:
    assert {suite: envs.sims_of(suite) for suite in SUITES} == {
        "tabletop": ("pybullet",),
        "tabletop_mixed": ("pybullet",),
        "foreign": (),
        "simpler": ("maniskill", "maniskill_gpu"),
    }
    assert simulator("simpler", ("maniskill", "another")) == "maniskill"
    assert simulator("simpler", ("maniskill", "another"), "another") == "another"
    with pytest.raises(
        ConfigError, match=r"^The suite 'simpler' needs the simulator maniskill or maniskill_gpu; got --sim pybullet\.$"
    ):
        simulator("simpler", envs.sims_of("simpler"), "pybullet")
    with pytest.raises(ConfigError, match=r"^The suite 'foreign' needs --env\.$"):
        simulator("foreign", envs.sims_of("foreign"))
    with pytest.raises(ConfigError, match=r"^Unknown suite 'table'\. Did you mean 'tabletop'\?"):
        simulator("table", envs.sims_of("table"))
