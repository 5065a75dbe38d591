# shellcheck shell=bash
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# source run-hooks.sh FOLDER: source each *.sh of a folder and run each executable file, in the
# order of their names. A hook that fails is reported; the others still run.

# shellcheck source=log.sh
. /usr/local/bin/_docker_stacks_log.sh

if [[ $# -ne 1 ]]; then
    _log ERROR "run-hooks.sh: Should pass exactly one directory"
    return 1
fi
if [[ ! -d $1 ]]; then
    _log ERROR "run-hooks.sh: Directory $1 doesn't exist or is not a directory"
    return 1
fi
_log INFO "Running hooks in: $1 as uid $(id -u)"
for _hook in "$1"/*; do
    [[ -f $_hook ]] || continue
    if [[ $_hook == *.sh ]]; then
        _log INFO "Sourcing shell script: $_hook"
        # Not as part of a condition: that would disable the hook's own set -e.
        # shellcheck disable=SC1090
        . "$_hook"
        _status=$?
    elif [[ -x $_hook ]]; then
        _log INFO "Running executable: $_hook"
        "$_hook"
        _status=$?
    else
        _log INFO "Ignoring non-executable: $_hook"
        _status=0
    fi
    [[ $_status -eq 0 ]] || _log ERROR "$_hook has failed, continuing execution"
done
unset _hook _status
_log INFO "Done running hooks in: $1"
