# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue as the action plugins that work on images are given it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible_collections.slipway.host.plugins.module_utils.images import catalogue, declaration
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild


class Builds:
    """The catalogue of a task's arguments, for the host's variant and base."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._how = [arguments[key] for key in ("variant", "base", "args")]
        try:
            self._catalogue = catalogue.load_catalogue(Path(arguments["catalogue"]))
        except declaration.DeclarationError as error:
            raise AnsibleActionFail(str(error)) from error

    def of(self, names: list[str] | None = None) -> list[ImageBuild]:
        """Return the builds of the images NAMES and of what they stand on, of all where None.

        Raise AnsibleActionFail where that makes no sense.
        """
        try:
            return self._catalogue.builds(
                list(self._catalogue.images) if names is None else names, *self._how
            )
        except declaration.DeclarationError as error:
            raise AnsibleActionFail(str(error)) from error
