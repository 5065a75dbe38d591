# shellcheck shell=bash
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Sourced: messages of start.sh and run-hooks.sh on standard error. JUPYTER_DOCKER_STACKS_QUIET
# suppresses those of level INFO. Colors appear only on a terminal and without NO_COLOR.

_log() {
    local level=INFO color=
    case "$1" in
    INFO | WARNING | ERROR | FATAL) level=$1 && shift ;;
    esac
    [[ $level != INFO || -z ${JUPYTER_DOCKER_STACKS_QUIET:-} ]] || return 0
    case "$level" in
    WARNING) color='0;33' ;;
    ERROR) color='0;31' ;;
    FATAL) color='0;1;31' ;;
    esac
    [[ -t 2 && -z ${NO_COLOR:-} ]] || color=
    printf '%s%s[%(%F %T)T] %s%s\n' "${color:+$'\e'[${color}m}" "$level" -1 "$*" "${color:+$'\e'[0m}" >&2
}

_log_info() { _log INFO "$@"; }
_log_warning() { _log WARNING "$@"; }
_log_error() { _log ERROR "$@"; }
_log_fatal() { _log FATAL "$@" && exit 1; }
