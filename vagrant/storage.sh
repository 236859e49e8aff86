#!/bin/sh
# The storage box: kernel NFS 4.2 and nothing else. Run in it by Vagrant, as root; run again, it changes nothing.
# usage: storage.sh NETWORK [DIRECTORY ...]      (default: /srv/ftkvm)
set -eu
network=$1
shift
[ $# -gt 0 ] || set -- /srv/ftkvm
export DEBIAN_FRONTEND=noninteractive
dpkg -s nfs-kernel-server >/dev/null 2>&1 || { apt-get -q update && apt-get -q -y install --no-install-recommends nfs-kernel-server; }
mkdir -p "$@" /etc/exports.d
# sync: what a client was told is written is on the disk, also after this box loses its power
for directory in "$@"; do
  echo "$directory $network(rw,sync,no_root_squash,no_subtree_check)"
done > /etc/exports.d/ftkvm.exports
exportfs -ra
systemctl enable -q --now nfs-server
