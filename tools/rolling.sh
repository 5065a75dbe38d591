# SPDX-License-Identifier: GPL-3.0-or-later
# shellcheck shell=sh
# Sourced by ./slipway and tools/upgrade.sh: replaces --serial and --max-failures in the arguments by
# variables.
left=$#
while [ "$left" -gt 0 ]; do
    argument=$1
    shift
    left=$((left - 1))
    case "$argument" in
    --serial | --max-failures)
        value=${1:-}
        [ "$left" -eq 0 ] || { shift && left=$((left - 1)); }
        ;;
    --serial=* | --max-failures=*) value=${argument#*=} argument=${argument%%=*} ;;
    *) set -- "$@" "$argument" && continue ;;
    esac
    case "$value" in
    *[!0-9%]* | *%?* | % | '')
        echo "slipway: $argument: '$value'; expected a number of hosts such as 2, or a percentage" \
            "such as 25%. Nothing was changed." >&2
        exit 1
        ;;
    esac
    case "$argument" in
    # Both variables: one of the inventory would be used instead.
    --serial) set -- "$@" -e "slipway_serial=$value slipway_upgrade_serial=$value" ;;
    --max-failures) set -- "$@" -e "slipway_max_failures=$value" ;;
    esac
done
