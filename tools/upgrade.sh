#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Driver, engine and container toolkit: to their newest versions, and back.
# Usage: ./slipway upgrade [ROLE ...] [ARGUMENTS FOR ansible-playbook ...]
#        ./slipway rollback [ARGUMENTS FOR ansible-playbook ...]
#   upgrade   Fetches everything, keeps what is there now, upgrades, loads the driver, asks the host
#             to do the real thing, and holds the set again. One host at a time; the first failure
#             stops the run and tells how to go back. --check tells what would move.
#   rollback  Returns to what was there before the last upgrade, which was kept on the host.
# ROLE is nvidia_driver, docker_engine or nvidia_container_toolkit; without one, all three. The
# driver stays in its branch unless nvidia_driver_branch names another one, and the toolkit moves to
# nvidia_container_toolkit_version. Examples:
#   ./slipway upgrade --check --limit gpu01
#   ./slipway upgrade nvidia_driver --limit gpu01 -e nvidia_driver_branch=595
#   ./slipway upgrade -e slipway_upgrade_serial=10%
#   ./slipway rollback --limit gpu01
set -eu

verb=$1
shift
roles=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help) sed -n 's/^# \{0,1\}//; 3,16p' "$0" && exit 0 ;;
    -*) break ;;
    *) roles="$roles${roles:+,}\"$1\"" && shift ;;
    esac
done
if [ "$verb" = rollback ] && [ -n "$roles" ]; then
    echo "slipway: rollback returns a host to all that it had before its last upgrade, and takes" \
        "no role. Nothing was changed." >&2
    exit 1
fi
[ -z "$roles" ] || set -- -e "{\"slipway_upgrade\": [$roles]}" "$@"
exec ansible-playbook "playbooks/$verb.yml" "$@"
