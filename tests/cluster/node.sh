#!/usr/bin/env bash
# The first process of a node: machines.py starts it in namespaces of its own.
#   node.sh NAME ADDRESS FOLDER KEPT...    FOLDER is the cluster's; KEPT are folders that are seen also where /tmp has them
set -u
name=$1 address=$2 folder=$3
shift 3
hostname "$name"
mount -t tmpfs tmpfs /run
for kept in "$@"; do # before /tmp is another one
    case $kept in /tmp/*) mkdir -p "/run/kept$kept" && mount --rbind "$kept" "/run/kept$kept" ;; esac
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
for kept in "$@"; do
    case $kept in /tmp/*) mkdir -p "$kept" && mount --rbind "/run/kept$kept" "$kept" ;; esac
done
mount -t tmpfs tmpfs /var/spool
mount -t tmpfs -o mode=1777,size=12g tmpfs /dev/shm
mkdir -p /run/sshd /run/munge /run/lock /var/spool/slurmd /var/spool/slurmctld
cat /proc/sys/kernel/random/uuid >/run/boot_id # Dragon knows machines apart by it
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip address add "$address/24" dev eth0 && ip link set eth0 up
munged --force --key-file="$folder/etc/munge.key" --pid-file=/run/munge/munged.pid --log-file=/run/munge/munged.log \
    --seed-file=/run/munge/seed --socket=/run/munge/munge.socket.2
/usr/sbin/sshd -f "$folder/etc/sshd_config"
if [ "$name" = login ]; then slurmctld; else slurmd -N "$name"; fi
touch "$folder/$name.ready"
while :; do # to reap what loses its parent
    sleep infinity &
    wait $!
done
