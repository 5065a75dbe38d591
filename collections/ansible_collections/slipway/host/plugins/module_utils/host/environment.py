# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of everything that Slipway runs on a host, independent of the login account.

The settings of the account that Ansible uses must not change a result: a Docker context or builder
of root would build images on another engine, a umask of 077 would make files that no user can read,
a locale would translate output that Slipway parses. Modules, detached jobs and the survey call
:func:`apply` first. Python 3.9, standard library.
"""

from __future__ import annotations

import os
import pwd

# Variables that remain: how the host reaches a network, and which certificates it trusts.
NETWORK = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
KEPT = frozenset((*NETWORK, *(name.upper() for name in NETWORK), *CERTIFICATES))
FIXED = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    # The Docker client prefers this address to the current context. buildx prefers this builder to
    # the selected one; it is the builder of the engine at that address.
    "DOCKER_HOST": "unix:///run/docker.sock",
    "BUILDX_BUILDER": "default",
    "DEBIAN_FRONTEND": "noninteractive",
}
UMASK = 0o022


def apply() -> None:
    """Set the environment and the umask of this process, and so of all that it starts."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    try:
        account = pwd.getpwuid(os.geteuid())
        user = {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    except KeyError:
        user = {"HOME": "/"}
    os.environ.clear()
    os.environ.update({**kept, **user, **FIXED})
    os.umask(UMASK)
