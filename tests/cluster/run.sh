#!/usr/bin/env bash
# Runs the tests of this folder, on a login node and compute nodes made of namespaces: `make test-cluster`.
#
# It installs the Debian packages that they need where it may. Where something is not to be had it says what, and succeeds.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
    echo "tests on a cluster: not run, $1"
    exit 0
}

[ "$(uname -s)" = Linux ] || skip "this is not Linux"
[ "$(id -u)" = 0 ] || skip "they need root, for namespaces of their own"
unshare --mount --net --uts --ipc --pid --fork --mount-proc true 2>/dev/null || skip "they need namespaces of their own"

declare -A packages=([slurmctld]=slurm-wlm [slurmd]=slurm-wlm [srun]=slurm-wlm [munged]=munge [sshd]=openssh-server
    [ip]=iproute2 [mpirun.openmpi]=openmpi-bin)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
lacking() {
    for command in "${!packages[@]}"; do
        command -v "$command" >/dev/null || echo "${packages[$command]}"
    done | sort -u | xargs
}
if [ -n "$(lacking)" ] && command -v apt-get >/dev/null; then
    # Debian's own services are not started: the nodes have theirs.
    { apt-get update && RUNLEVEL=1 apt-get install --yes --no-install-recommends $(lacking); } >/dev/null 2>&1 || true
fi
missing=$(lacking)
[ -z "$missing" ] || skip "these Debian packages are missing: $missing"
unshare --net sh -c 'ip link add br0 type bridge && ip link add v0 type veth peer name w0' 2>/dev/null ||
    skip "this kernel makes no bridges or no pairs of interfaces"
export RHAPSODY_CLUSTER=1
.venv/bin/python -m pytest tests/cluster "$@" && exit
echo "tests on a cluster: what failed runs once more, since a crowded machine may start engines too slowly"
.venv/bin/python -m pytest tests/cluster --last-failed --last-failed-no-failures=none "$@"
