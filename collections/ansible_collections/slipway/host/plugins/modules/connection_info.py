#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.connection_info, whose action plugin runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: connection_info
short_description: Return how Ansible connects to a host
description:
  - Evaluates the settings of the connection as Ansible does, from inventory, C(ansible.cfg),
    environment and command line. Does not connect to the host.
  - Returns no password and no content of a key, except those that somebody wrote into the arguments
    of ssh. Fails if a value, or a variable in its template, is encrypted with C(!vault).
options:
  folder:
    description:
      - Folder on the controller for a file with the result as JSON, with the name of the host and
        its position in the play. Only its owner should be able to read the folder.
      - Without a folder, no file is written.
    type: path
attributes:
  check_mode:
    description: Changes nothing on the host.
    support: full
  diff_mode:
    description: Shows nothing.
    support: none
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Read how Ansible connects to the host
  slipway.host.connection_info:
  register: connection_info
"""

RETURN = r"""
hold:
  description: Why a person keeps the host out of all runs, or empty.
  returned: always
  type: str
connection:
  description: The connection. Empty if the host is held.
  returned: without O(folder)
  type: dict
  contains:
    transport:
      description: Name of the connection plugin. The other keys exist only for C(ssh).
      type: str
    address:
      description: Name or address of the host.
      type: str
    port:
      description: Port, or nothing for the default of ssh.
      type: int
    user:
      description: User, or nothing for the default of ssh.
      type: str
    key:
      description: Path of the private key, or nothing for the default of ssh.
      type: str
    arguments:
      description: Further arguments of ssh, in their order.
      type: str
"""
