"""What users write becomes Dask's words, or a sentence; no Dask is needed for it."""

from __future__ import annotations

from typing import Any

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
    threads_of,
    unmet,
)

pytestmark = pytest.mark.engine("dask")


def worker(**fields: Any) -> WorkerInfo:
    given: dict[str, Any] = {"address": "tcp://10.0.0.1:4000", "name": 0, "host": "10.0.0.1", "threads": 1}
    return WorkerInfo(**{**given, **fields})


def task(**fields: Any) -> ComputeTask:
    return ComputeTask(executable="/bin/true", **fields)


def test_plain_task_goes_anywhere() -> None:
    """A task without options goes anywhere."""
    assert placement_of(task(), "dask") is ANYWHERE
    assert ANYWHERE.keywords() == {"priority": 0, "pure": False}


def test_options_become_dask_keywords() -> None:
    """Options become the keywords of Dask."""
    options = {"resources": {"B": 2, "A": 1}, "priority": 3, "workers": ["w1", 2], "allow_other_workers": True}
    placement = placement_of(task(backend_options=options), "dask")
    assert placement.keywords() == {
        "priority": 3,
        "pure": False,
        "resources": {"A": 1.0, "B": 2.0},
        "workers": ["w1", 2],
        "allow_other_workers": True,
    }


def test_one_worker_without_a_list() -> None:
    """One worker may be given without a list."""
    assert placement_of(task(backend_options={"workers": "w1"}), "dask").workers == ("w1",)


def test_gpus_use_dasks_name() -> None:
    """GPUs are asked for under the name that Dask documents."""
    placement = placement_of(task(resources=Resources(gpus_per_rank=0.5)), "dask")
    assert placement.resources == (("GPU", 0.5),)


def test_cores_and_memory_choose_workers() -> None:
    """Cores and memory rule out the workers that have less; where all have enough, Dask chooses."""
    placement = placement_of(task(resources=Resources(cores_per_rank=2, memory="1 GiB")), "dask")
    large = worker(address="tcp://10.0.0.2:1", threads=4, memory=2**31)
    small, poor = worker(threads=1, memory=2**31), worker(threads=4, memory=2**20)
    assert (placement.cores, placement.memory) == (2, 2**30)
    assert placement.keywords([small, large, poor])["workers"] == ["tcp://10.0.0.2:1"]
    assert "workers" not in placement.keywords([large, large])
    assert unmet(placement, [small, large]) is None
    problem = unmet(placement, [small, poor])
    assert problem is not None
    assert "has 2 threads and has 1073741824 bytes of memory" in problem
    assert "4 threads, 1048576 bytes of memory" in problem


def test_libraries_keep_to_their_cores() -> None:
    """A task that asks for cores has as many threads in the variables of its libraries."""
    wanted = task(resources=Resources(cores_per_rank=3))
    assert threads_of(wanted)[wanted.uid]["OMP_NUM_THREADS"] == "3"
    assert threads_of(task()) == {}


def test_dask_gpus_override_portable_ones() -> None:
    """GPUs given as Dask resources override portable ones."""
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
def test_senseless_value_is_named(options: dict[str, object]) -> None:
    """A value that makes no sense is refused and named."""
    with pytest.raises(UnsupportedError, match=rf"task refused: backend 'dask'.*{next(iter(options))}"):
        placement_of(task(uid="refused", backend_options=options), "dask")


def test_worker_by_name_address_or_host() -> None:
    """A worker is found by its name, address or host."""
    for word in (0, "0", "tcp://10.0.0.1:4000", "10.0.0.1:4000", "10.0.0.1"):
        assert unmet(Placement(workers=(word,)), [worker()]) is None, word
    assert "is one of other" in str(unmet(Placement(workers=("other",)), [worker()]))
    assert unmet(Placement(workers=("other",), allow_other_workers=True), [worker()]) is None


def test_unoffered_resource_is_explained() -> None:
    """A resource that nobody offers is answered with what they offer."""
    workers = [worker(resources={"GPU": 2}), worker(name="big", address="tcp://10.0.0.2:4000")]
    problem = unmet(Placement(resources=(("TPU", 1.0),)), workers)
    assert problem is not None
    assert "TPU=1" in problem
    assert "0 at tcp://10.0.0.1:4000 offers GPU=2" in problem
    assert "big at tcp://10.0.0.2:4000 offers no resources" in problem


def test_resource_beyond_one_worker() -> None:
    """More of a resource than any one worker has is not offered."""
    assert unmet(Placement(resources=(("GPU", 3.0),)), [worker(resources={"GPU": 2}), worker(resources={"GPU": 1})])
    assert unmet(Placement(resources=(("GPU", 2.0),)), [worker(resources={"GPU": 2})]) is None


def test_no_workers_nothing_runs() -> None:
    """Without workers nothing can run."""
    assert unmet(ANYWHERE, []) == "no worker is there: there are none"


def test_unknown_cluster_keyword_is_named() -> None:
    """An unknown keyword of LocalCluster is named with its nearest neighbour."""
    with pytest.raises(BackendConfigurationError, match=r"'n_worker'.*n_workers"):
        check_cluster_keywords({"n_worker": 2}, {"n_workers", "processes"})


def test_backends_own_keyword_is_refused() -> None:
    """A keyword that belongs to the backend is refused with the reason."""
    with pytest.raises(BackendConfigurationError, match=r"'asynchronous'.*which loop"):
        check_cluster_keywords({"asynchronous": False}, {"asynchronous"})


def test_other_versions_are_both_named() -> None:
    """Other versions on a worker are named with both sides."""
    theirs = worker(packages={"python": "3.12.1.final.0", "cloudpickle": "3.0.0"})
    python, cloudpickle = mismatches({"python": "3.11.7.final.0", "cloudpickle": "3.1.2"}, theirs)
    assert "python 3.11.7.final.0 here and 3.12.1.final.0 on worker tcp://10.0.0.1:4000" in python
    assert "cloudpickle 3.1.2 here and 3.0.0" in cloudpickle


def test_another_core_is_named() -> None:
    """Another rhapsody-core on a worker is named with both versions; the same one, and an unknown one, are not."""
    theirs = worker(packages={"rhapsody-core": "0.2.1"})
    assert mismatches({"rhapsody-core": "0.2.0"}, theirs) == [
        "rhapsody-core 0.2.0 here and 0.2.1 on worker tcp://10.0.0.1:4000"
    ]
    assert mismatches({"rhapsody-core": "0.2.1"}, theirs) == []
    assert mismatches({"rhapsody-core": "0.2.0"}, worker(packages={"rhapsody-core": None})) == []


def test_python_patch_release_matches() -> None:
    """Another patch release of Python is no mismatch."""
    theirs = worker(packages={"python": "3.11.9.final.0", "cloudpickle": None})
    assert mismatches({"python": "3.11.7.final.0", "cloudpickle": "3.1.2"}, theirs) == []


def test_slots_are_all_threads() -> None:
    """Slots are the threads of all workers."""
    from rhapsody_dask.batches import capacity_for

    assert capacity_for([worker(threads=2), worker(threads=4)], adaptive=False) == Capacity(slots=6, units=42)


def test_empty_cluster_gets_work() -> None:
    """An empty cluster is given work so that it can grow."""
    from rhapsody_dask.batches import capacity_for

    assert capacity_for([], adaptive=True) == Capacity(slots=1, units=64)


def test_record_divides_a_lost_batch() -> None:
    """As many tasks as were noted may have begun; the others, and other batches, have not."""
    from rhapsody_dask.batches import begun_of

    tasks = [task(uid=f"t{i}") for i in range(4)]
    assert begun_of(tasks, 7, {7: 2}) == {"t0", "t1"}
    assert begun_of(tasks, 7, {8: 2}) == set()
    assert begun_of(tasks, 7, {7: 0}) == set()


def test_lost_batch_without_record() -> None:
    """Nothing is known of a worker whose record cannot be read, so every task may have begun."""
    from rhapsody_dask.batches import begun_of

    assert begun_of([task(uid="t0")], 7, None) is None
