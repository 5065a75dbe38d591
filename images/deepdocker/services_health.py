# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health check: every service that run_all.sh started runs, and its port answers.

A container that was started to do something else, such as `bash`, is healthy without one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

# What image.yml declares; sshd would note each look at its door.
PORTS = {"jupyter": 8888, "tensorboard": 6006, "rstudio": 8787, "shiny": 3838}
RUN = Path(f"/tmp/services-{os.getuid()}")


def main() -> int:
    """Ask supervisord, then every port; return the exit status that Docker understands."""
    if not RUN.exists():
        return 0
    command = ["supervisorctl", "--configuration", "/opt/slipway/services/supervisord.conf"]
    environment = {"TENSORBOARD_LOGS": "", "NAME": "", **os.environ, "RUN": str(RUN)}
    asked = subprocess.run([*command, "status"], env=environment, check=False)
    if asked.returncode != 0:
        return 1
    for service, port in PORTS.items():
        if (RUN / f"{service}.conf").exists():
            try:
                socket.create_connection(("127.0.0.1", port), timeout=3).close()
            except OSError as error:
                print(f"{service} does not answer: {error}")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
