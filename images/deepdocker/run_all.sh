#!/bin/sh
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# run_all.sh [SERVICE ...]: run services as the container's user, restart services that exit, and
# write their logs to the container's output. Default: all services of the image; ssh only if
# SSH_AUTHORIZED_KEYS or the file SSH_AUTHORIZED_KEYS_FILE contains public keys.
#
#   jupyter 8888      token: JUPYTER_TOKEN, the content of JUPYTER_TOKEN_FILE, or a generated one
#   tensorboard 6006  shows the runs in TENSORBOARD_LOGS, default the working directory
#   shiny 3838        serves the apps in SHINY_APPS, default an example
#   rstudio 8787      only if the image was built with RStudio; the password is Jupyter's token
#   ssh 22            login by key, as a normal user: ssh -p 2222 slipway@host. The host key is in
#                     /var/lib/slipway/ssh; mount a volume there to keep it
set -eu

SERVICES=/opt/slipway/services
RSTUDIO=/usr/lib/rstudio-server/bin/rserver
WITHOUT_RSTUDIO="rstudio: not in this image, because it was built without RSTUDIO_URL"
# services_health.py reads this folder.
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
        say "Jupyter URL: http://127.0.0.1:8888/lab?token=$JUPYTER_TOKEN"
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
    [ "$(id -u)" -ne 0 ] || { say "ssh: does not run as root; set another --user" >&2 && exit 2; }
    [ -n "$keys" ] || { say "ssh: no key; set SSH_AUTHORIZED_KEYS or SSH_AUTHORIZED_KEYS_FILE" >&2 && exit 2; }
    keep=/var/lib/slipway/ssh
    # Fallback for a read-only file system without a volume.
    [ -w "$keep" ] || keep=$HOME/.ssh
    [ -d "$keep" ] || mkdir -m 0700 "$keep"
    key=$keep/ssh_host_ed25519_key
    [ -e "$key" ] || ssh-keygen -q -t ed25519 -N '' -C "$NAME" -f "$key"
    say "SSH host key: $(ssh-keygen -l -f "$key.pub")"
    printf '%s\n' "$keys" >"$RUN/authorized_keys"
    cat >"$RUN/sshd_config" <<END
Port 22
HostKey $key
PidFile none
AuthorizedKeysFile $RUN/authorized_keys
# StrictModes would reject the key files, because /tmp and the home folder are world-writable.
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
    [ -e "$SERVICES/$service.conf" ] || { say "unknown service: $service; see $SERVICES" >&2 && exit 2; }
    "prepare_$service"
    cp "$SERVICES/$service.conf" "$RUN/$service.conf"
done
exec supervisord --configuration "$SERVICES/supervisord.conf"
