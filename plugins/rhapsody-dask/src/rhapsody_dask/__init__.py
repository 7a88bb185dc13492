"""RHAPSODY on Dask.

`backend` has the hooks; `engine` starts, connects to and closes a cluster; `flight` follows the units that the
scheduler holds (`units`), `workers` the workers, and `withdraw` takes work back; `options` translates what users write
into Dask's words, without Dask; `on_scheduler` and `on_worker` are what runs inside Dask's own processes; `bench` is
Dask by itself.
"""
