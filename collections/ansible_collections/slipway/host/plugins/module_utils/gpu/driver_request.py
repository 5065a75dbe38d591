# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the role nvidia_driver that choose a driver.

Private to the collection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.gpu.model import (
    AUTO,
    DriverRequest,
    HostFacts,
    Refusal,
)

DISTRIBUTION = "distribution"
KEEP = "keep"
_DRIVER_VERSION = re.compile(r"\d{3}\.\d+(?:\.\d+)?")


def read_request(host: HostFacts, options: Mapping[str, Any]) -> DriverRequest:
    """Return the options of the role as input of the decision; raise Refusal for invalid ones."""
    source, version = options["nvidia_driver_source"], options["nvidia_driver_version"]
    modules = options["nvidia_driver_modules"]
    if version and not isinstance(version, str):
        raise Refusal(
            f"nvidia_driver_version: found the number {version}; expected a string. Quote it"
        )
    if version and not _DRIVER_VERSION.fullmatch(version):
        raise Refusal(
            f"nvidia_driver_version: found {version!r}; expected a driver version such as"
            " '580.178.04'"
        )
    gpus = str(options["nvidia_driver_gpus"])
    if gpus != AUTO and not gpus.isdecimal():
        raise Refusal(f"nvidia_driver_gpus: found {gpus!r}; expected 'auto' or a number such as 8")
    number = _branch_number(options["nvidia_driver_branch"])
    if version:
        version_branch = int(version.split(".")[0])
        if number not in (None, version_branch):
            raise Refusal(
                f"nvidia_driver_version {version} belongs to branch {version_branch}, but "
                f"nvidia_driver_branch is {number}. Remove one of the two variables"
            )
        number = version_branch
    # A kept driver may come from any source.
    request_source = {AUTO: AUTO, KEEP: AUTO, DISTRIBUTION: host.distribution}.get(source, source)
    return DriverRequest(
        request_source, number, None if modules == AUTO else modules, options["nvidia_driver_video"]
    )


def _branch_number(branch: int | str) -> int | None:
    if str(branch) == AUTO:
        return None
    if re.fullmatch(r"\d{3}", str(branch)):
        return int(branch)
    raise Refusal(
        f"nvidia_driver_branch: found {branch!r}; expected 'auto' or a number such as 580"
    )
