#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs arm64 programs on an x86 machine; nothing is registered outside the new user namespace.
# Usage: busybox sh emulate.sh VERB COMMAND [ARGUMENT ...]
#   start  run COMMAND in a new user namespace with its own registration of the emulator
#   join   run COMMAND in the user namespace of process 1
# busybox and qemu-aarch64, both static programs of this machine, are in the folder of this script.
# COMMAND starts by env, because busybox would run its own programs in place of those of the host.
set -eu

verb=$1
shift
folder=${0%/*}
busybox=$folder/busybox
# The default processor computes pointer authentication, which is slow to emulate.
export QEMU_CPU=cortex-a72

namespace() {
    "$busybox" readlink "/proc/$$/ns/user"
}

case $verb in
start)
    # The engine mounts the tree read-only in some containers. The new namespace cannot change that.
    [ $$ -ne 1 ] || "$busybox" mount -o remount,bind,rw /sys/fs/cgroup 2>/dev/null || :
    outside=$(namespace)
    # Only a process outside may map all IDs. Each ID stays the same.
    (
        until [ "$(namespace)" != "$outside" ]; do "$busybox" usleep 1000; done
        echo 0 0 4294967295 >"/proc/$$/uid_map"
        echo 0 0 4294967295 >"/proc/$$/gid_map"
    ) >/dev/null &
    exec "$busybox" unshare --user --mount "$busybox" sh "$0" wait "$@"
    ;;
wait)
    # A program that root starts after the mapping has all capabilities in the namespace.
    tries=0
    until read -r _ <"/proc/$$/gid_map"; do
        tries=$((tries + 1))
        if [ "$tries" -gt 1000 ]; then
            echo "emulate.sh: user IDs are not mapped; expected the rights of root" >&2
            exit 1
        fi
        "$busybox" usleep 10000
    done
    exec "$busybox" sh "$0" register "$@"
    ;;
register)
    "$busybox" mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    # The ELF header of a program or shared object of 64 bits for machine 183, see elf(5).
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    # mmdebstrap expects this name. P keeps argv[0]; O and C make setuid programs such as sudo work;
    # F opens the emulator now, so that it also runs in other root folders.
    printf %s ":qemu-aarch64:M::$magic:$mask:$folder/qemu-aarch64:POCF" \
        >/proc/sys/fs/binfmt_misc/register
    exec /usr/bin/env "$@"
    ;;
join)
    exec "$busybox" nsenter -t 1 --user /usr/bin/env "$@"
    ;;
esac
