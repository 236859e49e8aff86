#!/bin/sh
# The storage box: kernel NFS 4.2 and nothing else. Run in it by Vagrant, as root; run again, it changes nothing.
# usage: storage.sh NETWORK [DIRECTORY ...]      (default: /srv/ftkvm)
set -eu
network=$1
shift
[ $# -gt 0 ] || set -- /srv/ftkvm
export DEBIAN_FRONTEND=noninteractive
dpkg -s nfs-kernel-server >/dev/null 2>&1 || { apt-get -q update && apt-get -q -y install --no-install-recommends nfs-kernel-server; }
mkdir -p "$@" /etc/exports.d /etc/nfs.conf.d
# A dead host's locks stand in the way of a VM's restart until its lease is over, and after the server's own start new
# locks wait until every host has asked for its old ones, or the grace time is over. Both are 90 s unless told.
conf=/etc/nfs.conf.d/ftkvm.conf
if ! grep -qs lease-time=15 "$conf"; then
  printf '[nfsd]\nlease-time=15\ngrace-time=15\n' > "$conf"
  systemctl try-restart nfs-server
fi
# No delegations: a file that a host was lent (NFS 4 lends what is read or written) is replaced or removed by nobody else until
# that host gives it back, and one that is dead does not before its lease is over. The others' heartbeats would wait for it.
echo 'fs.leases-enable = 0' > /etc/sysctl.d/ftkvm-nfs.conf
sysctl -q -p /etc/sysctl.d/ftkvm-nfs.conf
# sync: what a client was told is written is on the disk, also after this box loses its power
for directory in "$@"; do
  echo "$directory $network(rw,sync,no_root_squash,no_subtree_check)"
done > /etc/exports.d/ftkvm.exports
exportfs -ra
systemctl enable -q --now nfs-server
