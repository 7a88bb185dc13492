"""RHAPSODY on Dask.

`backend` has the hooks; `engine` starts, connects to and closes a cluster; `flight` follows the units that the
scheduler holds (`units`), `workers` the workers, and `withdraw` takes work back; `options` translates what users write
into Dask's words, without Dask; `remote` is what runs inside the scheduler and the workers; `bench` is Dask by itself.
"""
