"""What users write becomes Dask's words, or a sentence; no Dask is needed for it."""

from __future__ import annotations

import pytest
from rhapsody.api import BackendConfigurationError, ComputeTask, Resources, UnsupportedError
from rhapsody.plugin import Capacity
from rhapsody_dask.options import (
    ANYWHERE,
    Placement,
    WorkerInfo,
    check_cluster_keywords,
    mismatches,
    placement_of,
    unmet,
)

pytestmark = pytest.mark.engine("dask")


def worker(**fields: object) -> WorkerInfo:
    return WorkerInfo(**{"address": "tcp://10.0.0.1:4000", "name": 0, "host": "10.0.0.1", "threads": 1, **fields})


def task(**fields: object) -> ComputeTask:
    return ComputeTask(executable="/bin/true", **fields)


def test_a_task_without_options_goes_anywhere() -> None:
    assert placement_of(task(), "dask") is ANYWHERE
    assert ANYWHERE.keywords() == {"priority": 0, "pure": False}


def test_options_become_the_keywords_of_dask() -> None:
    options = {"resources": {"B": 2, "A": 1}, "priority": 3, "workers": ["w1", 2], "allow_other_workers": True}
    placement = placement_of(task(backend_options=options), "dask")
    assert placement.keywords() == {
        "priority": 3,
        "pure": False,
        "resources": {"A": 1.0, "B": 2.0},
        "workers": ["w1", 2],
        "allow_other_workers": True,
    }


def test_one_worker_may_be_given_without_a_list() -> None:
    assert placement_of(task(backend_options={"workers": "w1"}), "dask").workers == ("w1",)


def test_gpus_are_asked_for_under_the_name_that_dask_documents() -> None:
    placement = placement_of(task(resources=Resources(gpus_per_rank=0.5)), "dask")
    assert placement.resources == (("GPU", 0.5),)


def test_gpus_that_are_given_as_dask_resources_win_over_portable_ones() -> None:
    placement = placement_of(task(resources=Resources(gpus_per_rank=1), backend_options={"resources": {"GPU": 2}}), "d")
    assert placement.resources == (("GPU", 2.0),)


@pytest.mark.parametrize(
    "options",
    [
        {"resources": "GPU"},
        {"resources": {"GPU": 0}},
        {"resources": {"GPU": "one"}},
        {"priority": "high"},
        {"retries": -1},
        {"retries": 1.5},
        {"retries": True},
        {"workers": 1.5},
        {"workers": [None]},
        {"allow_other_workers": True},
    ],
    ids=str,
)
def test_a_value_that_makes_no_sense_is_refused_and_named(options: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError, match=rf"task refused: backend 'dask'.*{next(iter(options))}"):
        placement_of(task(uid="refused", backend_options=options), "dask")


def test_a_worker_is_found_by_its_name_address_or_host() -> None:
    for word in (0, "0", "tcp://10.0.0.1:4000", "10.0.0.1:4000", "10.0.0.1"):
        assert unmet(Placement(workers=(word,)), [worker()]) is None, word
    assert "is one of other" in str(unmet(Placement(workers=("other",)), [worker()]))
    assert unmet(Placement(workers=("other",), allow_other_workers=True), [worker()]) is None


def test_a_resource_that_nobody_offers_is_answered_with_what_they_offer() -> None:
    workers = [worker(resources={"GPU": 2}), worker(name="big", address="tcp://10.0.0.2:4000")]
    problem = unmet(Placement(resources=(("TPU", 1.0),)), workers)
    assert problem is not None
    assert "TPU=1" in problem
    assert "0 at tcp://10.0.0.1:4000 offers GPU=2" in problem
    assert "big at tcp://10.0.0.2:4000 offers no resources" in problem


def test_more_of_a_resource_than_any_one_worker_has_is_not_offered() -> None:
    assert unmet(Placement(resources=(("GPU", 3.0),)), [worker(resources={"GPU": 2}), worker(resources={"GPU": 1})])
    assert unmet(Placement(resources=(("GPU", 2.0),)), [worker(resources={"GPU": 2})]) is None


def test_without_workers_nothing_can_run() -> None:
    assert unmet(ANYWHERE, []) == "no worker is there: there are none"


def test_an_unknown_keyword_of_a_local_cluster_is_named_with_its_neighbour() -> None:
    with pytest.raises(BackendConfigurationError, match=r"'n_worker'.*n_workers"):
        check_cluster_keywords({"n_worker": 2}, {"n_workers", "processes"})


def test_a_keyword_that_belongs_to_the_backend_is_refused_with_the_reason() -> None:
    with pytest.raises(BackendConfigurationError, match=r"'asynchronous'.*which loop"):
        check_cluster_keywords({"asynchronous": False}, {"asynchronous"})


def test_other_versions_on_a_worker_are_told_with_both_sides() -> None:
    theirs = worker(packages={"python": "3.12.1.final.0", "cloudpickle": "3.0.0"})
    python, cloudpickle = mismatches({"python": "3.11.7.final.0", "cloudpickle": "3.1.2"}, theirs)
    assert "python 3.11.7.final.0 here and 3.12.1.final.0 on worker tcp://10.0.0.1:4000" in python
    assert "cloudpickle 3.1.2 here and 3.0.0" in cloudpickle


def test_another_patch_release_of_python_is_no_mismatch() -> None:
    theirs = worker(packages={"python": "3.11.9.final.0", "cloudpickle": None})
    assert mismatches({"python": "3.11.7.final.0", "cloudpickle": "3.1.2"}, theirs) == []


def test_slots_are_the_threads_of_all_workers() -> None:
    from rhapsody_dask.units import capacity_for

    assert capacity_for([worker(threads=2), worker(threads=4)], adaptive=False) == Capacity(slots=6, units=42)


def test_an_empty_cluster_is_given_work_so_that_it_can_grow() -> None:
    from rhapsody_dask.units import capacity_for

    assert capacity_for([], adaptive=True) == Capacity(slots=1, units=64)


def test_a_ledger_divides_a_lost_unit_at_the_task_that_it_was_at() -> None:
    from rhapsody_dask.on_worker import digest
    from rhapsody_dask.units import split_by_ledger

    tasks = [task(uid=f"t{i}") for i in range(4)]
    assert split_by_ledger(tasks, 7, {7: digest("t1")}) == (tasks[:2], tasks[2:])
    assert split_by_ledger(tasks, 7, {8: digest("t1")}) == ([], tasks)
    assert split_by_ledger(tasks, 7, {7: bytes(8)}) == ([], tasks)


def test_without_a_ledger_every_task_of_a_lost_unit_may_have_begun() -> None:
    from rhapsody_dask.units import split_by_ledger

    tasks = [task(uid=f"t{i}") for i in range(4)]
    assert split_by_ledger(tasks, 7, None) == (tasks, [])
