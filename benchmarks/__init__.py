"""Measurements of RHAPSODY against the raw engines; `python -m benchmarks` runs those of the local backend."""
