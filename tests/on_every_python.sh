#!/usr/bin/env bash
# Runs the core's tests on each of Python 3.11, 3.12 and 3.13 that this machine has, each in an environment of its own.
#
#   make test-all                  all of them
#   PYTHONS="3.12" make test-all   these
#   tests/on_every_python.sh -k session        further arguments are pytest's
set -euo pipefail
cd "$(dirname "$0")/.."

UV=${UV:-uv}
read -ra versions <<<"${PYTHONS:-3.11 3.12 3.13}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Prints an interpreter of the version $1: on PATH, of pyenv's (whose shims need not work), or one that uv knows.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python \
        "$("$UV" python find --system --no-project --no-python-downloads "$1" 2>/dev/null || true)"; do
        if "$candidate" -c "import sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
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
    # The engines have their own tests; here it is the language that varies.
    VIRTUAL_ENV="$folder/$version" "$UV" pip install --quiet -c constraints.txt -e 'core[test,docs,bench]'
    if "$folder/$version/bin/python" -m pytest -q -p no:cacheprovider -m "not slow" \
        tests/core tests/contracts tests/conformance "$@"; then
        ran+=("$version")
    else
        failed+=("$version")
    fi
done

echo "== passed: ${ran[*]:-none}; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ] && [ ${#ran[@]} -gt 0 ]
