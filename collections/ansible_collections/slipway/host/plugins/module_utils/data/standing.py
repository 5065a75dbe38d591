# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a git work tree is where it was declared to be, from what the probe says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def is_of(version: str, found: Mapping[str, Any]) -> bool:
    """Whether the repository and the revision of this VERSION were checked out last."""
    return bool((found["record"] or {}).get("version") == version)


def displaced(
    found: Mapping[str, Any], url: str, revision: str, settled: bool
) -> Iterator[tuple[str, str]]:
    """Yield what was moved since, and where it should be.

    SETTLED says that the revision is a commit.  Whoever works on a branch moves it; only a tag or a
    commit stands still.
    """
    git, record = found["git"], found["record"]
    if git["url"] != url:
        yield f"origin is {git['url'] or 'none'}", url
    if record.get("branch"):
        stands = git["branch"] == record["branch"]
    else:
        stands = git["head"] == (revision if settled else record.get("commit"))
    if not stands:
        yield f"at {git['branch'] or git['head'][:12]}", f"at {revision}"
