import re
from dataclasses import fields, replace

import pytest

from tap_ray.errors import ConfigError
from tap_ray.evaluate.protocol import Protocol, cells, check, policy_seed
from tap_ray.rng import seed_of
from tap_ray.types import EnvConfig

PROTOCOL = Protocol(tasks=("carrot", "spoon"), env_version="1", scenarios=("standard", "texture"), episodes=3)
TASKS = ["carrot", "spoon", "stack"]


def test_cells_are_the_product_in_order():
    assert [(c.task, c.scenario, c.initial_state) for c in cells(PROTOCOL)] == [
        (task, scenario, state)
        for task in ("carrot", "spoon")
        for scenario in ("standard", "texture")
        for state in (0, 1, 2)
    ]


def test_a_larger_protocol_contains_the_smaller_one():
    more = cells(replace(PROTOCOL, episodes=5))
    assert set(cells(PROTOCOL)) < set(more)


def test_scenarios_are_paired_and_initial_states_differ():
    seeds = {(c.task, c.scenario, c.initial_state): c.seed for c in cells(PROTOCOL)}
    assert all(seeds[task, "standard", s] == seeds[task, "texture", s] for task in PROTOCOL.tasks for s in range(3))
    assert len(set(seeds.values())) == 6


def test_evaluated_seeds_are_never_those_of_play_or_demonstrations():
    evaluated = {c.seed for c in cells(replace(PROTOCOL, episodes=500))}
    trained = {seed_of(0, stage, i) for stage in ("demos", "play") for i in range(5000)}
    trained |= {seed_of(0, "demos", task, i) for task in PROTOCOL.tasks for i in range(5000)}
    assert len(evaluated) == 1000
    assert not evaluated & trained


def test_policy_noise_follows_from_the_cell():
    first, second = cells(PROTOCOL)[:2]
    assert policy_seed(0, first) == policy_seed(0, replace(first))
    assert len({policy_seed(0, first), policy_seed(0, second), policy_seed(1, first), first.seed}) == 4


OTHER = {
    "tasks": ("carrot",),
    "env_version": "2",
    "suite": "simpler",
    "scenarios": ("standard",),
    "episodes": 4,
    "seed": 1,
    "max_steps": 61,
    "image_size": 64,
    "robot": "panda",
    "sim": "maniskill",
    "cameras": ("main", "wrist"),
}


@pytest.mark.parametrize("field", [field.name for field in fields(Protocol)])
def test_every_defining_field_changes_the_hash(field):
    assert replace(PROTOCOL, **{field: OTHER[field]}).hash != PROTOCOL.hash


def test_order_and_process_do_not_change_the_hash():
    turned = replace(PROTOCOL, tasks=("spoon", "carrot"), scenarios=("texture", "standard"))
    assert turned.hash == PROTOCOL.hash == "72299e8974780d26"


def test_plain_values():
    values = PROTOCOL.to_json()
    assert values["hash"] == PROTOCOL.hash
    assert values["tasks"] == ["carrot", "spoon"]
    named = {field.name for field in fields(Protocol)}
    assert set(values) == {"hash", "success"} | named - {"cameras"}, "one camera is not mentioned"
    assert set(replace(PROTOCOL, cameras=("main", "wrist")).to_json()) == {"hash", "success"} | named
    assert values["success"] == "once"
    assert PROTOCOL.hash == "72299e8974780d26", "as when the rule was a field"


def test_a_scene_carries_everything_shared():
    protocol = replace(PROTOCOL, max_steps=7, image_size=32, robot="r", sim="s")
    assert protocol.env_config("carrot", "texture") == EnvConfig(
        task="carrot", scenario="texture", max_steps=7, image_size=32, robot="r", sim="s"
    )


def test_simplers_protocol():
    """SIMPLER's protocol: 60 steps, 120 for the eggplant; its 24 initial states are their own seeds."""
    protocol = replace(PROTOCOL, suite="simpler", sim="maniskill", tasks=("put_eggplant_in_basket",))
    protocol = replace(protocol, episodes=26, scenarios=("standard",))
    assert protocol.env_config("put_eggplant_in_basket", "standard").max_steps == 2 * protocol.max_steps
    assert protocol.env_config("put_carrot_on_plate", "standard").max_steps == protocol.max_steps
    seeds = [cell.seed for cell in cells(protocol)]
    assert seeds[:24] == list(range(24))
    assert min(seeds[24:]) > 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("carot",)}, "Unknown task 'carot'. Did you mean 'carrot'? Known: carrot, spoon, stack."),
        ({"scenarios": ()}, "Name at least one scenario, and each only once; got []."),
        ({"suite": "table"}, "Unknown suite 'table'. Did you mean 'tabletop'?"),
        ({"tasks": ()}, "Name at least one task, and each only once; got []."),
        ({"tasks": ("spoon", "spoon")}, "Name at least one task, and each only once; got ['spoon', 'spoon']."),
        ({"episodes": 0}, "episodes must be at least 1; got 0."),
        ({"max_steps": -1}, "max_steps must be at least 1; got -1."),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    check(PROTOCOL, known_tasks=TASKS)
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        check(replace(PROTOCOL, **change), known_tasks=TASKS)


def test_every_scene_is_checked():
    seen = []
    check(PROTOCOL, known_tasks=TASKS, check_scene=seen.append)
    assert [(scene.task, scene.scenario) for scene in seen] == [
        (task, scenario) for task in PROTOCOL.tasks for scenario in PROTOCOL.scenarios
    ]
