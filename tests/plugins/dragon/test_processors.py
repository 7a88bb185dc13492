"""What workers and jobs take their processors and GPUs from."""

from __future__ import annotations

from typing import Any

import pytest
from rhapsody.api import ComputeTask, Resources
from rhapsody_dragon.job_launcher import shares
from rhapsody_dragon.processors import Claim, Node, Processors, Seat, claim_of, resized
from rhapsody_dragon.task_options import Launch

TWO = [Node("a", 4, (0, 1)), Node("b", 4, (0, 1, 2, 3))]


def test_claims_are_granted_with_room() -> None:
    """The one that finds none waits until another is given back."""
    processors, granted = Processors([Node("a", 2)]), []
    first = Claim(2)
    second = Claim(1, granted=lambda: granted.append("second"))
    assert processors.claim(first)
    assert not processors.claim(second)
    processors.release(first)
    assert granted == ["second"]
    assert second.seats == (Seat(0),)


def test_a_large_claim_is_not_overtaken() -> None:
    """Small ones that came later wait behind it, though there is room for them."""
    processors = Processors([Node("a", 4)])
    small, large, later = Claim(1), Claim(4), Claim(1)
    processors.claim(small)
    assert not processors.claim(large)
    assert not processors.claim(later)
    processors.release(small)
    assert (bool(large.seats), bool(later.seats)) == (True, False)


def test_a_withdrawn_claim_is_never_granted() -> None:
    """Those behind it move up."""
    processors = Processors([Node("a", 2)])
    first, withdrawn, last = Claim(1), Claim(2), Claim(1)
    for claim in (first, withdrawn, last):
        processors.claim(claim)
    processors.release(withdrawn)
    assert last.seats
    assert not withdrawn.seats


def test_giving_back_twice_gives_back_once() -> None:
    """Also where the second time is another thread's."""
    processors = Processors([Node("a", 1)])
    claim = Claim()
    processors.claim(claim)
    processors.release(claim)
    processors.release(claim)
    assert processors.claim(Claim())
    assert not processors.claim(Claim())


def test_ranks_fill_the_emptiest_node_first() -> None:
    """What does not fit there goes to the next."""
    processors = Processors(TWO)
    processors.claim(Claim(1, prefer=0))
    job = Claim(6)
    processors.claim(job)
    assert [seat.node for seat in job.seats] == [1, 1, 1, 1, 0, 0]


def test_cores_of_a_rank_are_on_one_node() -> None:
    """Three cores each: one rank on each node of four."""
    processors = Processors(TWO)
    job = Claim(2, cores=3)
    assert processors.claim(job)
    assert {seat.node for seat in job.seats} == {0, 1}
    assert not processors.can_ever_grant(Claim(3, cores=3))


def test_a_gpu_belongs_to_one_rank() -> None:
    """By their numbers on the node, and come back."""
    processors = Processors(TWO)
    job, other, waiting = Claim(2, gpus=2), Claim(1, gpus=2), Claim(1, gpus=1)
    processors.claim(job)
    processors.claim(other)
    given = [(seat.node, gpu) for claim in (job, other) for seat in claim.seats for gpu in seat.gpus]
    assert sorted(given) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert not processors.claim(waiting)
    processors.release(other)
    assert waiting.seats
    assert not processors.can_ever_grant(Claim(1, gpus=5))


@pytest.mark.parametrize(("count", "shares_of"), [(4, [2, 2]), (8, [4, 4]), (9, [5, 4]), (1, [1, 0])])
def test_slots_are_spread_over_the_nodes(count: int, shares_of: list[int]) -> None:
    """In proportion to their processors, and exactly as many as asked for."""
    assert [node.processors for node in resized(TWO, count)] == shares_of


def test_shares_of_a_gpu_are_packed() -> None:
    """Ranks that ask for a share fill one GPU before the next, and whole ones stay whole."""
    processors = Processors([Node("a", 8, (4, 7))])
    halves, quarter, whole = Claim(2, gpus=0.5), Claim(gpus=0.25), Claim(gpus=1)
    assert processors.claim(quarter)
    assert processors.claim(halves)
    assert [seat.gpus for seat in (*quarter.seats, *halves.seats)] == [(4,), (4,), (7,)]
    assert not processors.claim(whole)
    processors.release(quarter)
    processors.release(halves)
    assert whole.seats == (Seat(0, (4,)),)
    assert not processors.can_ever_grant(Claim(5, gpus=0.5))


def test_a_task_claims_what_it_asks_for() -> None:
    """Ranks, cores and GPUs; a template says how many ranks there are."""
    task = ComputeTask(executable="sh", resources=Resources(ranks=2, cores_per_rank=3, gpus_per_rank=1))
    claim = claim_of(task)
    assert (claim.ranks, claim.cores, claim.gpus) == (2, 3, 1)
    templates: dict[str, Any] = {"process_templates": [(1, {}), (4, {})]}
    assert claim_of(ComputeTask(executable="sh", backend_options=templates)).ranks == 5


def test_like_ranks_are_started_together() -> None:
    """In the order of the ranks, each with the policy of its seat."""
    plan = [Launch(1, "a", (), {}), Launch(3, "b", (), {})]
    seats = [Seat(0), Seat(0), Seat(0), Seat(1)]
    assert [(count, launch.target, policy) for count, launch, policy in shares(plan, seats, ["x", "x", "x", "y"])] == [
        (1, "a", "x"),
        (2, "b", "x"),
        (1, "b", "y"),
    ]
