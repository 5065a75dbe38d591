#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Remove from hosts what Slipway installed, as if Slipway had never run there.
# Usage: ./slipway remove [--yes] [--data] [ARGUMENTS FOR ansible-playbook ...]
#   --yes    do not ask
#   --data   also delete the data sets and repositories of ml_data, if nobody changed files in them
#   --bundle FILE [--signer KEY.pub]   without a network: try no server of a vendor
# Removes services, commands, images, rootless engines, session limits, container toolkit, Docker
# Engine and NVIDIA driver, with their packages, holds, apt sources and settings. Stays: accounts,
# groups, homes, SSH keys, shared folders, Docker volumes, and containers and images that people
# made. Removal stops at an image that a container uses, and waits while a GPU is in use. Examples:
#   ./slipway remove --check --limit gpu01
#   ./slipway remove --limit gpu01
# To keep a part, set its state: ./slipway remove --limit gpu01 -e docker_engine_state=present
set -eu

asked=''
arguments=$#
while [ "$arguments" -gt 0 ]; do
    argument=$1
    shift
    arguments=$((arguments - 1))
    case "$argument" in
    -h | --help) sed -n 's/^# \{0,1\}//; 3,14p' "$0" && exit 0 ;;
    --yes) asked=yes ;;
    --data) set -- "$@" -e '{"slipway_remove_data": true}' ;;
    -C | --check) asked=yes && set -- "$@" --check ;;
    *) set -- "$@" "$argument" ;;
    esac
done
if [ -z "$asked" ]; then
    # Only a run evaluates the variables of hosts. It connects to no host; the removal shows errors.
    report=$(mktemp)
    SLIPWAY_REPORT=$report SLIPWAY_REPORTS=/dev/null \
        ANSIBLE_STDOUT_CALLBACK=ansible.builtin.minimal \
        ansible-playbook playbooks/hold.yml "$@" </dev/null >/dev/null 2>&1 || true
    held=$(python -c 'import json, sys
hosts = json.loads(sys.stdin.read() or "{}")
print("\n".join(sorted(host for host in hosts if hosts[host]["state"] == "held")))' <"$report")
    rm -f "$report"
    ansible-playbook playbooks/remove.yml --list-hosts "$@" | sed -n 's/^      //p' | sort -u |
        grep -vxF -e "$held" || true
    [ -z "$held" ] || echo "Held hosts are left out: $(echo "$held" | paste -sd, | sed 's/,/, /g')."
    printf 'Remove everything that Slipway installed on these hosts? Type "remove": '
    answer=''
    read -r answer || printf '\n'
    [ "$answer" = remove ] || {
        echo "slipway: remove: not confirmed; expected \"remove\" or --yes. Nothing was changed." >&2
        exit 1
    }
fi
exec ansible-playbook playbooks/remove.yml "$@"
