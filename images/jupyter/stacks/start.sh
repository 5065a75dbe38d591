#!/bin/bash
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# start.sh COMMAND...: run hooks, become the user that NB_USER, NB_UID and NB_GID describe, then run
# the command. docs/docker-stacks.md describes the variables. A container that starts as root without
# any of these variables stays root; one that does not start as root keeps its user.

# shellcheck source=log.sh
. /usr/local/bin/_docker_stacks_log.sh

HOOKS=/usr/local/bin
IMAGE_HOME=/home/slipway

if [[ -n ${SLIPWAY_STARTED:-} ]]; then
    _log WARNING "start.sh is the default ENTRYPOINT, do not include it in CMD"
    exec "$@"
fi
export SLIPWAY_STARTED=1
[[ $# -gt 0 ]] || set -- bash

# Whether a variable of docker-stacks describes a user.
user_is_described() {
    [[ -n ${NB_USER:-}${NB_UID:-}${NB_GID:-}${NB_GROUP:-}${CHOWN_HOME:-}${CHOWN_EXTRA:-}${GRANT_SUDO:-} ]]
}

is_yes() { [[ ${1,,} =~ ^(1|yes|true)$ ]]; }

run_hooks() {
    # Without a program: this runs at each start.
    compgen -G "$HOOKS/$1/*" >/dev/null || return 0
    # shellcheck source=run-hooks.sh
    . "$HOOKS/run-hooks.sh" "$HOOKS/$1"
}

check_user() {
    [[ $NB_USER =~ ^[a-z_][a-z0-9_.-]{0,31}$ ]] ||
        _log_fatal "NB_USER: '$NB_USER'; expected a user name, such as alice. Nothing was started."
    [[ $NB_GROUP =~ ^[a-z_][a-z0-9_.-]{0,31}$ ]] ||
        _log_fatal "NB_GROUP: '$NB_GROUP'; expected a group name, such as team. Nothing was started."
    local number
    for number in "NB_UID=$NB_UID" "NB_GID=$NB_GID"; do
        [[ ${number#*=} =~ ^[0-9]{1,9}$ ]] ||
            _log_fatal "${number%%=*}: '${number#*=}'; expected a number, such as 1000. Nothing was started."
    done
    local uid
    if uid=$(id -u "$NB_USER" 2>/dev/null) && [[ $NB_USER != root && $uid -lt 1000 ]]; then
        _log_fatal "NB_USER: '$NB_USER' is an account of the image; expected another name. Nothing was started."
    fi
    [[ -w /etc/passwd && -w /etc/group && -w /home ]] ||
        _log_fatal "the file system is read-only; expected one where accounts can be changed." \
            "Start the container without --read-only, or with --user UID:GID. Nothing was started."
    setpriv --reuid "$NB_UID" --regid "$NB_GID" --clear-groups true 2>/dev/null ||
        _log_fatal "cannot become uid $NB_UID: the container has no right to change its user." \
            "Start it without --cap-drop, or with --user $NB_UID:$NB_GID. Nothing was started."
}

# Write the account to /etc/passwd and /etc/group in place: Docker may have mounted them.
write_account() {
    local kept
    getent group "$NB_GID" >/dev/null && [[ -z ${group_is_named:-} ]] || {
        kept=$(grep --invert-match --extended-regexp "^($NB_GROUP:|[^:]*:[^:]*:$NB_GID:)" /etc/group)
        printf '%s\n' "$kept" "$NB_GROUP:x:$NB_GID:" >/etc/group
    }
    kept=$(awk -F: -v name="$NB_USER" -v uid="$NB_UID" -v old="$image_user" \
        '$1 != name && $3 != uid && $1 != old' /etc/passwd)
    printf '%s\n' "$kept" "$NB_USER:x:$NB_UID:$NB_GID:$NB_USER:/home/$NB_USER:/bin/bash" >/etc/passwd
    if [[ $NB_UID -ne 0 && $NB_GID -ne 100 ]]; then
        sed --in-place --expression "s/^\(users:[^:]*:[^:]*:\).*/\1$NB_USER/" /etc/group
    fi
}

# Give the user a home. All home folders are one folder, so mounts below /home/jovyan appear in it.
make_home() {
    local home=/home/$NB_USER
    [[ -e $home || -L $home ]] || ln -s "$IMAGE_HOME" "$home"
    if ! mountpoint --quiet "$(realpath "$home")"; then
        cp --recursive --no-clobber /etc/skel/. "$home/"
        mkdir -p "$home/.jupyter"
        chown "$NB_UID:$NB_GID" "$home/" "$home/.jupyter"
        find "$home/" -mindepth 1 -maxdepth 1 -name '.*' -user root -type f \
            -exec chown "$NB_UID:$NB_GID" {} +
    fi
    if is_yes "${CHOWN_HOME:-}"; then
        # The options are several words.
        # shellcheck disable=SC2086
        chown ${CHOWN_HOME_OPTS:-} "$NB_UID:$NB_GID" "$home/"
    fi
    local folder
    for folder in ${CHOWN_EXTRA//,/ }; do
        # shellcheck disable=SC2086
        chown ${CHOWN_EXTRA_OPTS:-} "$NB_UID:$NB_GID" "$folder"
    done
    export HOME=$home
}

become_user() {
    image_user=$(awk -F: -v home="$IMAGE_HOME" '$6 == home { print $1; exit }' /etc/passwd)
    group_is_named=${NB_GROUP:-}
    : "${NB_USER:=jovyan}" "${NB_UID:=1000}" "${NB_GID:=100}"
    : "${NB_GROUP:=$NB_USER}"
    check_user
    _log INFO "Making the account $NB_USER: uid $NB_UID, gid $NB_GID, home /home/$NB_USER"
    write_account
    make_home
    export USER=$NB_USER LOGNAME=$NB_USER
    unset XDG_CACHE_HOME
}

# Start where the person's files are: in a folder mounted below the home, if /work has none.
choose_folder() {
    [[ $PWD == /work ]] || return 0
    mountpoint --quiet /work && return 0
    local mounted
    mounted=$(awk -v home="$(realpath "$HOME")" '$5 == home || index($5, home "/") == 1' /proc/self/mountinfo)
    [[ -z $mounted ]] || cd "$HOME" || return 0
}

launcher=()
if user_is_described; then
    _log INFO "Entered start.sh with args: $*"
    if [[ -n ${GRANT_SUDO:-} ]] && is_yes "$GRANT_SUDO"; then
        _log WARNING "GRANT_SUDO is not supported: the image has no sudo. Install software in a container" \
            "that starts with --user root, or with: docker exec --user root"
    fi
fi
run_hooks start-notebook.d
if [[ $EUID -eq 0 ]] && user_is_described; then
    become_user
    if [[ $NB_UID -ne 0 ]]; then
        launcher=(setpriv --reuid "$NB_UID" --regid "$NB_GID" --init-groups --)
    fi
elif user_is_described; then
    for name in NB_USER NB_UID NB_GID NB_GROUP CHOWN_HOME CHOWN_EXTRA; do
        [[ -z ${!name:-} ]] || _log WARNING "$name=${!name} has no effect: the container did not start with --user root"
    done
fi
run_hooks before-notebook.d
choose_folder
[[ -z ${NB_UMASK:-} ]] || umask "$NB_UMASK"
for name in ${JUPYTER_ENV_VARS_TO_UNSET//,/ }; do
    unset "$name"
done
if [[ $EUID -eq 0 ]]; then
    # In a user namespace root is an ordinary user of the host.
    read -r _ outside _ </proc/self/uid_map
    if user_is_described || [[ $outside -eq 0 ]]; then
        _log INFO "Running as ${NB_USER:-root}:" "$("${launcher[@]}" id)"
    fi
fi
exec "${launcher[@]}" "$@"
