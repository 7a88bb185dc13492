#!/usr/bin/env bash
# Runs the core's tests on each Python that this machine has, each in an environment of its own.
#
#   make test-all                        3.11, 3.12, 3.13 and 3.14; one of them at least must be here
#   PYTHONS="3.12 3.13t" make test-all   these; 3.13t is free-threaded, and so on
#   MAY_LACK=1 ...                       none of them need be here
#   tests/on_every_python.sh -k session  further arguments are pytest's
set -euo pipefail
cd "$(dirname "$0")/.."

UV=${UV:-uv}
read -ra versions <<<"${PYTHONS:-3.11 3.12 3.13 3.14}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The version of a Python as it is named here, with a t where it is free-threaded.
version_of="import sys, sysconfig, venv
print('%d.%d' % sys.version_info[:2] + 't' * bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"

# Prints an interpreter of the version $1: on PATH, of pyenv's (whose shims need not work), or one that uv knows.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python \
        "$("$UV" python find --system --no-project --no-python-downloads "$1" 2>/dev/null || true)"; do
        if [ "$("$candidate" -c "$version_of" 2>/dev/null)" = "$1" ]; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

ran=()
failed=()
for version in "${versions[@]}"; do
    if ! python=$(find_python "$version"); then
        echo "== Python $version: not on this machine"
        continue
    fi
    echo "== $("$python" --version): $python"
    "$UV" venv --quiet --python "$python" "$folder/$version"
    # The engines have their own tests; here it is the language that varies. Not all that the tests need has wheels for a
    # free-threaded Python: there it is the local backend that is tested.
    needs=(-e 'core[test,docs,bench]')
    rooms=(tests/core tests/contracts tests/conformance)
    if [ "${version%t}" != "$version" ]; then
        needs=(-e core anyio uvloop numpy psutil pytest pytest-asyncio pytest-cov pytest-timeout pytest-xdist)
        rooms=(tests/core/backends tests/core/sessions tests/core/worker tests/conformance/test_concurrent.py)
    fi
    VIRTUAL_ENV="$folder/$version" "$UV" pip install --quiet -c constraints.txt "${needs[@]}"
    if "$folder/$version/bin/python" -m pytest -q -p no:cacheprovider -m "not slow" "${rooms[@]}" "$@"; then
        ran+=("$version")
    else
        failed+=("$version")
    fi
done

echo "== passed: ${ran[*]:-none}; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ] && { [ ${#ran[@]} -gt 0 ] || [ -n "${MAY_LACK:-}" ]; }
