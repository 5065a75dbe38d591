#!/bin/sh
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# run_all.sh [SERVICE ...]: run services as whoever the container runs as, start again what dies,
# and send their logs to the container's output. Without SERVICE: all that the image has, and ssh
# where SSH_AUTHORIZED_KEYS or the file SSH_AUTHORIZED_KEYS_FILE says who may come in.
#
#   jupyter 8888      the token is JUPYTER_TOKEN, or that in JUPYTER_TOKEN_FILE, or a new one
#   tensorboard 6006  shows the runs below TENSORBOARD_LOGS, or else the folder it starts in
#   shiny 3838        serves the apps below SHINY_APPS, or else an example
#   rstudio 8787      where the image was built with it; the password is Jupyter's token
#   ssh 22            by key alone, as a normal user; for those outside ssh -p 2222 slipway@host;
#                     its host key is kept in /var/lib/slipway/ssh, where a volume outlives it
set -eu

SERVICES=/opt/slipway/services
RSTUDIO=/usr/lib/rstudio-server/bin/rserver
WITHOUT_RSTUDIO="RStudio is not in this image: it was built without RSTUDIO_URL"
# services_health.py looks here, too.
RUN=/tmp/services-$(id -u)
NAME=$(id -un)
export RUN NAME
rm -rf "$RUN"
mkdir -m 0700 "$RUN"

say() { echo "run_all.sh: $*"; }

keys=${SSH_AUTHORIZED_KEYS-$(cat "${SSH_AUTHORIZED_KEYS_FILE:-/dev/null}")}

prepare_jupyter() {
    if [ -z "${JUPYTER_TOKEN:-}${JUPYTER_TOKEN_FILE:-}" ]; then
        JUPYTER_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(24))')
        export JUPYTER_TOKEN
        say "Jupyter is at http://127.0.0.1:8888/lab?token=$JUPYTER_TOKEN"
    fi
}

prepare_tensorboard() { export TENSORBOARD_LOGS="${TENSORBOARD_LOGS:-$PWD}"; }

prepare_shiny() {
    mkdir "$RUN/shiny"
    cat >"$RUN/shiny.config" <<END
run_as $NAME;
server {
  listen 3838 0.0.0.0;
  location / {
    site_dir ${SHINY_APPS:-/srv/shiny-server};
    log_dir $RUN/shiny;
    bookmark_state_dir $RUN/shiny;
    directory_index on;
  }
}
END
}

prepare_rstudio() {
    [ -x "$RSTUDIO" ] || { say "$WITHOUT_RSTUDIO" >&2 && exit 2; }
    mkdir "$RUN/rstudio"
}

prepare_ssh() {
    [ "$(id -u)" -ne 0 ] || { say "ssh does not run as root; take another --user" >&2 && exit 2; }
    [ -n "$keys" ] || { say "ssh needs SSH_AUTHORIZED_KEYS or the file with them" >&2 && exit 2; }
    keep=/var/lib/slipway/ssh
    # On a read-only file system without a volume.
    [ -w "$keep" ] || keep=$HOME/.ssh
    [ -d "$keep" ] || mkdir -m 0700 "$keep"
    key=$keep/ssh_host_ed25519_key
    [ -e "$key" ] || ssh-keygen -q -t ed25519 -N '' -C "$NAME" -f "$key"
    say "SSH's host key is $(ssh-keygen -l -f "$key.pub")"
    printf '%s\n' "$keys" >"$RUN/authorized_keys"
    cat >"$RUN/sshd_config" <<END
Port 22
HostKey $key
PidFile none
AuthorizedKeysFile $RUN/authorized_keys
# The files above are this user's, but /tmp and the home folder are anybody's.
StrictModes no
UsePAM no
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
Subsystem sftp internal-sftp
SetEnv PATH=$PATH$(env | sed -n 's/^\(LD_PRELOAD\|NSS_WRAPPER_[A-Z]*\|KERAS_BACKEND\)=/ &/p' | tr -d '\n')
END
}

if [ $# -eq 0 ]; then
    set -- jupyter tensorboard shiny
    if [ -x "$RSTUDIO" ]; then
        set -- "$@" rstudio
    else
        say "$WITHOUT_RSTUDIO"
    fi
    [ -z "$keys" ] || set -- "$@" ssh
fi
for service; do
    [ -e "$SERVICES/$service.conf" ] || { say "there is no service $service" >&2 && exit 2; }
    "prepare_$service"
    cp "$SERVICES/$service.conf" "$RUN/$service.conf"
done
exec supervisord --configuration "$SERVICES/supervisord.conf"
