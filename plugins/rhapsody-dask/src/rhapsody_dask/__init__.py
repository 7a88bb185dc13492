"""RHAPSODY on Dask: the map of its modules, each of which imports only from those below it.

bench         Dask by itself, for `rhapsody bench`
backend       the hooks that the session calls
tracker       follows the batches that the scheduler holds
withdraw      takes tasks back, and stops executables where they run
workers       the workers of the cluster, and what a lost one had begun
engine        starts, connects to and closes a cluster             (knows no tasks)
clusters      makes the clusters that the backend starts
batches       a batch that the scheduler holds                     (pure)
on_worker     runs batches, and reports                            (inside Dask's workers)
on_scheduler  watches workers, and takes batches back              (inside Dask's scheduler)
allowance     what a worker of another machine may begin           (pure)
records       what a worker has begun, in files of its machine
queues        translates one vocabulary for batch systems          (pure)
options       checks and translates what users write               (pure)
"""
