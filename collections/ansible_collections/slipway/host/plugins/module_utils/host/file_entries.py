# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change owned files and folders one by one: what is in the way of one does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ansible_collections.slipway.host.plugins.module_utils.host.module import HostModule
from ansible_collections.slipway.host.plugins.module_utils.state import (
    apply_files,
    files,
    model,
    paths,
)
from ansible_collections.slipway.host.plugins.module_utils.state.here import Here


class FileEntries:
    """Changes files and folders; collects the changed paths, their diffs, and conflicts."""

    def __init__(self, module: HostModule) -> None:
        self.module = module
        self.here = Here(files)
        self.changed: list[str] = []
        self.conflicts: list[model.Conflict] = []
        self.diff: list[dict[str, str]] = []

    def apply(self, kind: str, path: str, change: Callable[[], dict[str, str] | None]) -> None:
        """Call the CHANGE of one entry; add its diff, or what is in the way.

        CHANGE returns None if nothing differs.
        """
        try:
            diff = change()
        except (model.ConflictError, paths.UnsafePathError) as error:
            self.conflicts.append(model.Conflict(kind, path, str(error)))
        except (OSError, LookupError) as error:
            reason = f"Cannot change {path}: {error}"
            self.conflicts.append(model.Conflict(kind, path, reason))
        else:
            if diff is not None:
                self.changed.append(path)
                self.diff.append(diff)

    def secure_parents(self, owned: Mapping[str, Any]) -> list[model.Difference]:
        """Make root the only writer of the parent folders; return their differences."""
        differences = self.here.parent_differences(owned)
        if differences and not self.module.check_mode:
            apply_files.secure_parents(*self.here.guarded(owned))
        return differences

    def finish(self) -> NoReturn:
        """Return the result of the module; fail if there are conflicts."""
        self.module.finish(
            self.conflicts, changed=bool(self.changed), paths=self.changed, diff=self.diff
        )
