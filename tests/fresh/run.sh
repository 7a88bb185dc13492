#!/usr/bin/env bash
# Runs this tree in a bare Debian, as an ordinary user: no compiler, nothing of Python but python3 and python3-venv.
#
#   tests/fresh/run.sh SUITE core     `make demo`, also after tries that failed; core's tests; `rhapsody doctor`
#   tests/fresh/run.sh SUITE whole    `make test`
#
# SUITE is a name of Debian's: trixie is Debian 13. It needs root and debootstrap; without them it says so and succeeds.
# The new root takes this machine's mirrors, indexes, proxies and certificates.
set -euo pipefail
cd "$(dirname "$0")/../.."

suite=$1
lane=$2
packages=python3,python3-venv,git,make,ca-certificates
configured='^(PIP_(INDEX_URL|EXTRA_INDEX_URL|CERT|TRUSTED_HOST|DEFAULT_TIMEOUT)|UV_(INDEX|DEFAULT_INDEX|INDEX_URL|EXTRA_INDEX_URL)'
configured+='|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy)='

skip() {
    echo "bare Debian $suite, $lane: not run, $1"
    exit 0
}

if [ "${3:-}" != inside ]; then
    [ "$(uname -s)" = Linux ] || skip "this is not Linux"
    [ "$(id -u)" = 0 ] || skip "it needs root"
    command -v debootstrap >/dev/null || skip "it needs debootstrap"
    unshare --mount --pid --fork true 2>/dev/null || skip "it needs namespaces of its own"
    root=$(mktemp -d)
    chmod 755 "$root"  # it is the user's / too
    trap 'rm -rf --one-file-system "$root"' EXIT
    # In namespaces of its own: whatever happens here, its mounts and processes end with it.
    unshare --mount --pid --fork --kill-child "$0" "$suite" "$lane" inside "$root" && exit || status=$?
    [ "$status" != 77 ] || skip "$(tail -n 1 "$root/debootstrap.log")"
    exit "$status"
fi

root=$4
home=/home/user
began=$SECONDS
mirror=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 'Created-By: Packages' 2>/dev/null | head -n 1 || true)
debootstrap --variant=minbase --include="$packages" "$suite" "$root" ${mirror:+"$mirror"} >"$root/debootstrap.log" 2>&1 ||
    exit 77

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/xdg/pip /etc/uv; do
    [ ! -e "$file" ] || cp -rL --parents "$file" "$root"
done
cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
mapfile -t settings < <(env | grep -E "$configured" |
    sed -E 's#^((SSL_CERT_FILE|REQUESTS_CA_BUNDLE|PIP_CERT)=).*#\1/etc/ssl/certs/ca-certificates.crt#' || true)

chroot "$root" useradd --create-home user
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- |
    tar --extract --no-same-owner --directory "$root$home" --one-top-level=rhapsody
chroot "$root" chown -R user: "$home"

# Runs a command of bash as the user, in the tree.
as_user() {
    echo "== $1"
    chroot --userspec=user:user "$root" env --ignore-environment --chdir="$home/rhapsody" "${settings[@]}" \
        HOME="$home" USER=user LOGNAME=user LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin bash -c "$1" </dev/null
}

echo "== bare Debian $suite after $((SECONDS - began)) s: $(chroot "$root" python3 --version)"
as_user '! command -v cc gcc clang && git init --quiet && git add --all'
if [ "$lane" = whole ]; then
    as_user 'make test'
else
    # As before python3-venv is installed, and after an installation that was killed.
    ensurepip=$(chroot "$root" python3 -c 'import ensurepip; print(ensurepip.__path__[0])')
    mv "$root$ensurepip" "$root/ensurepip"
    as_user '! make demo >/dev/null 2>&1'
    mv "$root/ensurepip" "$root$ensurepip"
    as_user 'timeout --signal=KILL 4 make demo >/dev/null 2>&1; rm -rf ~/.cache'
    as_user 'time make .venv/.core && make demo'
    as_user 'make install'
    pytest='.venv/bin/python -m pytest -q tests/core tests/contracts'
    as_user "$pytest -m 'serial and not slow'"
    as_user "$pytest -m 'not serial and not slow' -n 2 --dist loadgroup --no-loadscope-reorder"
    as_user '.venv/bin/rhapsody backends; .venv/bin/rhapsody doctor'
fi
echo "== bare Debian $suite, $lane: passed after $((SECONDS - began)) s"
