# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the catalogue for the action plugins that work on images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.images import catalogue, declaration
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild

# The arguments that all these plugins have.
ARGUMENT_SPEC: dict[str, Any] = {
    "names": {"type": "list", "elements": "str", "required": True},
    "catalogue": {"type": "path", "required": True},
    "variant": {"type": "str", "choices": ["cpu", "gpu"], "required": True},
    "base": {"type": "str", "required": True},
    "args": {"type": "dict", "default": {}},
}
# The arguments of the plugins that build images.
BUILD_ARGUMENT_SPEC: dict[str, Any] = {**ARGUMENT_SPEC, "build": {"type": "dict", "default": {}}}

# Ansible imports the plugins of tasks that will run in its main process.
declaration.preload()


class Builds:
    """The catalogue that a task names, for the variant and the base image of the host."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._target = [arguments[key] for key in ("variant", "base", "args")]
        try:
            self._catalogue = catalogue.load_catalogue(Path(arguments["catalogue"]))
        except declaration.DeclarationError as error:
            raise AnsibleActionFail(str(error)) from None

    def select(self, names: list[str] | None = None) -> list[ImageBuild]:
        """Return the builds of the images NAMES and of their base images.

        None selects all images that the host can have.

        Raise AnsibleActionFail if the declaration of an image is invalid.
        """
        try:
            return self._catalogue.builds(names, *self._target)
        except declaration.DeclarationError as error:
            raise AnsibleActionFail(str(error)) from None
