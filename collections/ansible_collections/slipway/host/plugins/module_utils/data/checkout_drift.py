# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a git work tree, as the survey reads it, with its declared repository and revision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def has_version(state: Mapping[str, Any], version: str) -> bool:
    """Return whether the last run checked out VERSION, which is repository and revision."""
    return bool((state["record"] or {}).get("version") == version)


def differences(
    state: Mapping[str, Any], url: str, revision: str, is_commit: bool
) -> Iterator[tuple[str, str]]:
    """Yield the found and the expected value of each difference since the last run.

    IS_COMMIT says that the revision is a commit. Work on a branch moves its commit, which is no
    difference; a tag or a commit must stay checked out.
    """
    git, record = state["git"], state["record"]
    if git["url"] != url:
        yield f"origin is {git['url'] or 'none'}", url
    if record.get("branch"):
        unchanged = git["branch"] == record["branch"]
    else:
        unchanged = git["head"] == (revision if is_commit else record.get("commit"))
    if not unchanged:
        yield f"at {git['branch'] or git['head'][:12]}", f"at {revision}"
