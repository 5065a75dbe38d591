# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Jupyter runs in a container. What is said on the command line wins, as everywhere."""

from __future__ import annotations

import os
from typing import Any

from jupyter_server.auth.identity import PasswordIdentityProvider
from traitlets import default
from traitlets.config import get_config

c = get_config()

# All addresses of the container, IPv4 and IPv6; the host decides which ports are published.
c.ServerApp.ip = "*"
c.ServerApp.port = int(os.environ.get("JUPYTER_PORT") or 8888)
c.ServerApp.open_browser = False
c.ServerApp.port_retries = 0
# In a container that runs as root there is nobody else to be.
c.ServerApp.allow_root = True
c.ServerApp.terminado_settings = {"shell_command": [os.environ.get("SHELL", "/bin/bash")]}


class AlwaysAToken(PasswordIdentityProvider):
    """Whoever reaches the port runs code as the container's user, so nobody comes in unasked.

    The token is that of JUPYTER_TOKEN or of the file JUPYTER_TOKEN_FILE, or else a new one, which
    Jupyter prints.
    """

    @default("token")
    def _token_default(self) -> str:
        """Leave out the end of the line, with which editors and openssl end a file."""
        return str(super()._token_default()).strip()

    def validate_security(self, app: Any, ssl_options: Any = None) -> None:
        """Refuse to start where the command line took the token away."""
        if not self.auth_enabled:
            app.log.critical("There has to be a token or a password; an empty one is refused.")
            app.exit(1)
        super().validate_security(app, ssl_options)


c.ServerApp.identity_provider_class = AlwaysAToken
c.ServerApp.allow_unauthenticated_access = False
