# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a host cannot be reached, and what to do: a sentence from the words of ssh."""

from __future__ import annotations

import re

# How Ansible names the address in its message.
ADDRESS = re.compile(r'remote host "([^"\n]+)"')
CHECK_SERVER = (
    "expected an SSH server. Check that the server runs, and the values of ansible_host and "
    "ansible_port"
)
# By a pattern in the words of ssh, what was found, what is expected and what to do. The first
# pattern that matches counts; {0} is the address.
REASONS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key differs from the one in known_hosts; expected the same key. If the server "
        "was installed again, run ssh-keygen -R {0} and then ssh {0}, compare the fingerprint, and "
        "answer yes. Otherwise another machine may answer in its place",
    ),
    (
        r"Host key verification failed",
        "its host key is not known; expected it in ~/.ssh/known_hosts of this machine. For a new "
        "server, run ssh {0}, compare the fingerprint with that of the server, and answer yes",
    ),
    (
        r"Permission denied \([^)\n]+\)",
        "the login failed ({found}); expected a user and a key that the server accepts. Set "
        "ansible_user and ansible_ssh_private_key_file, copy your key with ssh-copy-id, or add -k "
        "to be asked for the password",
    ),
    (
        r"Could not resolve hostname",
        "the name has no address; expected a name or an address in ansible_host. Correct it",
    ),
    (
        r"Connection refused|No route to host|Network is unreachable|"
        r"Connection timed out|Operation timed out|Connection reset by",
        "{found}; " + CHECK_SERVER,
    ),
)


def explain(message: str) -> str:
    """Return the reason as one sentence and what to do, or MESSAGE if the reason is not known."""
    address = ADDRESS.search(message)
    if address is None:
        return message
    for pattern, text in REASONS:
        if found := re.search(pattern, message):
            return f"SSH to {address[1]}: {text.format(address[1], found=found[0])}."
    return message
