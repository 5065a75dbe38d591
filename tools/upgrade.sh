#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Upgrade or roll back the NVIDIA driver, Docker Engine and the NVIDIA Container Toolkit.
# Usage: ./slipway upgrade [ROLE ...] [ARGUMENTS FOR ansible-playbook ...]
#        ./slipway rollback [ARGUMENTS FOR ansible-playbook ...]
#   upgrade   Downloads the packages, records the installed versions, upgrades and holds the
#             packages, loads the driver and runs acceptance checks. One host at a time; the first
#             failure stops the run and prints the rollback command. --check shows the changes.
#   rollback  Reinstalls the versions that were recorded before the last upgrade.
#   --bundle FILE [--signer KEY.pub]   Without a network: use the packages in a bundle.
# ROLE: nvidia_driver, docker_engine or nvidia_container_toolkit; default all three. The driver
# stays in its branch unless nvidia_driver_branch declares another. The toolkit is upgraded to
# nvidia_container_toolkit_version. Examples:
#   ./slipway upgrade --check --limit gpu01
#   ./slipway upgrade nvidia_driver --limit gpu01 -e nvidia_driver_branch=595
#   ./slipway upgrade --serial 10% --max-failures 2
#   ./slipway rollback --limit gpu01
set -eu

verb=$1
shift
roles=''
while [ $# -gt 0 ]; do
    case "$1" in
    -h | --help) sed -n 's/^# \{0,1\}//; 3,17p' "$0" && exit 0 ;;
    -*) break ;;
    *) roles="$roles${roles:+,}\"$1\"" && shift ;;
    esac
done
if [ "$verb" = rollback ] && [ -n "$roles" ]; then
    echo "slipway: rollback: unexpected argument $roles; expected no role: rollback restores all" \
        "packages of the last upgrade. Run again without a role. Nothing was changed." >&2
    exit 1
fi
[ -z "$roles" ] || set -- -e "{\"slipway_upgrade\": [$roles]}" "$@"
. tools/rolling.sh
exec ansible-playbook "playbooks/$verb.yml" "$@"
