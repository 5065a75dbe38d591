# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load this collection's shared code from byte code; import this module before that code.

Ansible's loader of collections compiles every file again in every run. For this collection that is
more than a tenth of the time of a re-run, see bench/run.py. Python's own loader keeps the result in
``__pycache__``. ansible-core is not changed: if its loader comes first, or the files are elsewhere,
Ansible loads the modules.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PLUGINS = Path(__file__).resolve().parent.parent
PREFIX = "ansible_collections.slipway.host.plugins."
PACKAGES = ("module_utils.", "plugin_utils.")


class Finder(MetaPathFinder):
    """Find the packages and modules below ``module_utils`` and ``plugin_utils``, nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the file of a module of this collection for Python's loader, None for others."""
        name = fullname.removeprefix(PREFIX)
        if name == fullname or not name.startswith(PACKAGES):
            return None
        folder = PLUGINS / name.replace(".", "/")
        package = folder / "__init__.py"
        if package.is_file():
            return spec_from_file_location(
                fullname, package, submodule_search_locations=[str(folder)]
            )
        file = folder.with_suffix(".py")
        return spec_from_file_location(fullname, file) if file.is_file() else None


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
