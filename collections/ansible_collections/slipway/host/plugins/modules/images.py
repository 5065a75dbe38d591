#!/usr/bin/python
# Copyright: Slipway contributors
# GNU General Public License v3.0+ (see LICENSE)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of slipway.host.images; it runs on the controller, see the action plugin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: images
short_description: Build images of the catalogue on the host
description:
  - Builds the images that are missing, outdated, or have other content than the record on the host
    names, in order of dependency.
  - The record holds the content ID of each image that was built and tested. An image that an old
    version built, which recorded no content ID, is tested again and recorded instead of built.
  - An image gets its tag only after its smoke test passed in a container without network. If the
    test fails, the tag and the running services stay as they are. The other images are still built,
    and the task fails at the end.
  - The build runs detached on the host, and the controller follows it. A lost connection does not
    end the build, and a second run waits for the first.
extends_documentation_fragment: [slipway.host.catalogue, slipway.host.catalogue.build]
options:
  names:
    description: Images of the catalogue. The images below them are built too.
    type: list
    elements: str
    required: true
  builder:
    description:
      - Names of the hosts that build for others. If another host builds for this one, the task
        builds nothing and names that host. C(auto) chooses one, an empty list none.
    type: list
    elements: str
    default: []
  bundle:
    description: Path of a bundle on the controller. If set, nothing is built.
    type: str
    default: ""
  signer:
    description: File with the public key that is trusted for the bundle. Default is your own key.
    type: str
    default: ""
attributes:
  check_mode:
    description: Reports the images that would be built.
    support: full
  diff_mode:
    description: Shows the present and the declared context digests.
    support: full
author:
  - Slipway contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Build the image iris-api
  slipway.host.images:
    names: [iris-api]
    catalogue: images
    variant: cpu
    base: debian-13
"""

RETURN = r"""
images:
  description: The images with their declared context digests.
  returned: always
  type: list
  elements: dict
builder:
  description: The host that builds for this one.
  returned: when another host builds
  type: str
wanted:
  description: References of the images to bring from that host.
  returned: when another host builds
  type: list
  elements: str
built:
  description: References of the images that were built.
  returned: when something was built or recorded
  type: list
  elements: str
fetched:
  description: References of the images that came from the bundle.
  returned: when something was built or fetched
  type: list
  elements: str
conflicts:
  description: Which images the host cannot run and why; a mapping with kind, name and reason each.
  returned: unless a build failed
  type: list
  elements: dict
recorded:
  description: References of images of an old version that were tested and recorded, not built.
  returned: when something was built or recorded
  type: list
  elements: str
"""
