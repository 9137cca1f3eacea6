"""Whose fault a loss is: the decision on facts made by hand."""

import pytest

from tap_ray.distributed.faults import Facts, Kind, kind_of


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        (Facts(node_alive=True), Kind.PROCESS),
        (Facts(node_alive=False), Kind.NODE),  # its processes were ended first, by whoever shut it down
        (Facts(node_alive=True, node_died=True), Kind.NODE),  # Ray has its reason before its list of nodes
        (Facts(node_alive=False, actor_dead=False), Kind.NODE),  # Ray knows of the node and not yet of the actor
        (Facts(node_alive=False, preempted=True), Kind.PREEMPTION),
        (Facts(node_alive=True, preempted=True), Kind.PREEMPTION),  # announced: its processes go before it
        (Facts(node_alive=True, out_of_memory=True), Kind.MEMORY),
        (Facts(node_alive=False, out_of_memory=True), Kind.NODE),
        (Facts(node_alive=True, result_lost=True), Kind.NODE),
        (Facts(node_alive=True, actor_dead=False), Kind.CONTACT),
        (Facts(node_alive=True, actor_dead=False, overdue=True), Kind.HANG),
        (Facts(node_alive=False, actor_dead=False, overdue=True), Kind.NODE),  # a machine that froze
    ],
)
def test_what_was_lost(facts: Facts, kind: Kind) -> None:
    assert kind_of(facts) is kind


def test_only_the_death_of_a_process_counts_against_its_item() -> None:
    assert {kind for kind in Kind if kind.own_fault} == {Kind.PROCESS, Kind.HANG}
