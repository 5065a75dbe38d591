# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load this collection's ``module_utils`` from byte code; import it before them.

Ansible's own loader of collections compiles each file anew in every run, which for the tables about
GPUs takes longer than asking a host.  Python's loader keeps the outcome in ``__pycache__``.
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
PREFIX = "ansible_collections.slipway.host.plugins.module_utils."


class Finder(MetaPathFinder):
    """Finds the files of ``module_utils``, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how Python itself would load a module of ours, None for all others."""
        name = fullname.removeprefix(PREFIX)
        file = PLUGINS / "module_utils" / f"{name}.py"
        if name == fullname or not file.is_file():
            return None
        return spec_from_file_location(fullname, file)


if not any(isinstance(finder, Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder())
