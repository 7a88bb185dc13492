#!/usr/bin/env bash
# Runs all tests but those of the nightly round and of the cluster: `make test`. Arguments are pytest's.
#
# First what judges gaps and ratios, on a machine with nothing else to do; then the rest, side by side by engine. What
# fails runs once more by itself, for two engines at a time crowd a small machine: what fails again has failed.
set -uo pipefail
cd "$(dirname "$0")/.."

COVERED=90 # percent of the core, branches counted
run() { "${PYTHON:-.venv/bin/python}" -m pytest --cov --cov-append --cov-report= "$@"; }

"${PYTHON:-.venv/bin/python}" -m coverage erase
run -m serial --cache-clear "$@"
serial=$?
run -m "not serial" -n "${LANES:-2}" --no-loadscope-reorder --durations=25 "$@"
lanes=$?
failed=0
case "$serial $lanes" in # pytest's exit codes: 1 is tests that failed, 5 no tests, all others its own failure
"0 0" | "5 0") ;;
"1 0" | "0 1" | "1 1" | "5 1")
    echo "what failed runs once more, by itself:"
    run --last-failed --last-failed-no-failures=none --maxfail=5 "$@" || failed=1
    ;;
*) # interrupted, or never begun
    echo "pytest ended with $serial (serial) and $lanes (lanes): not all tests were run, so coverage is not judged"
    exit 1
    ;;
esac
"${PYTHON:-.venv/bin/python}" -m coverage report --fail-under="$COVERED" || failed=1
exit "$failed"
