"""Whose fault a loss is: the decision on states of calls made by hand."""

import pytest

from tap_ray.distributed.faults import CallState, Kind, kind_of


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (CallState(node_alive=True), Kind.PROCESS),
        (CallState(node_alive=False), Kind.NODE),  # its processes were ended first, by whoever shut it down
        (CallState(node_alive=True, node_died=True), Kind.NODE),  # Ray has its reason before its list of nodes
        (CallState(node_alive=False, actor_dead=False), Kind.NODE),  # Ray knows of the node and not yet of the actor
        (CallState(node_alive=False, preempted=True), Kind.PREEMPTION),
        (CallState(node_alive=True, preempted=True), Kind.PREEMPTION),  # announced: its processes go before it
        (CallState(node_alive=True, out_of_memory=True), Kind.MEMORY),
        (CallState(node_alive=False, out_of_memory=True), Kind.NODE),
        (CallState(node_alive=True, result_lost=True), Kind.NODE),
        (CallState(node_alive=True, actor_dead=False), Kind.CONTACT),
        (CallState(node_alive=True, actor_dead=False, overdue=True), Kind.HANG),
        (CallState(node_alive=False, actor_dead=False, overdue=True), Kind.NODE),  # a machine that froze
    ],
)
def test_what_was_lost(call: CallState, kind: Kind) -> None:
    assert kind_of(call) is kind


def test_only_the_death_of_a_process_counts_against_its_item() -> None:
    assert {kind for kind in Kind if kind.own_fault} == {Kind.PROCESS, Kind.HANG}
