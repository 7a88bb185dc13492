"""Run the measurements of the local backend: `python -m benchmarks [NAME ...] [--quick] [--json FILE]`."""

from benchmarks.bench_local import main

if __name__ == "__main__":
    main()
