# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of ordinary.yml for pyinfra, with the same data."""

import io
import json
import os

from pyinfra.operations import apt, files, server, systemd

DATA = json.loads(os.environ["BENCH_DATA"])

apt.packages(packages=DATA["packages"], _sudo=True)
server.shell(
    commands=[
        f"dpkg-query -W -f '${{db:Status-Want}}' {package} | grep -q hold"
        for package in DATA["packages"]
    ],
    _sudo=True,
)
for path in DATA["absent"]:
    files.file(path=path, present=False, _sudo=True)
files.put(
    src=io.StringIO(DATA["daemon_json"]), dest="/etc/docker/daemon.json", mode="644", _sudo=True
)
for unit in DATA["units"]:
    systemd.service(service=unit, running=True, enabled=True, _sudo=True)
for user in DATA["users"]:
    server.user(user=user, shell="/bin/bash", groups=["docker"], append=True, _sudo=True)
files.put(
    src=io.StringIO(DATA["compose"]),
    dest="/etc/slipway/services/iris-api/compose.yaml",
    mode="644",
    _sudo=True,
)
server.shell(
    commands=["docker compose -f /etc/slipway/services/iris-api/compose.yaml up -d"], _sudo=True
)
