# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The addresses of a service at the front door, for ``ml url`` on its hosts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.front_door import caddy
from ansible_collections.slipway.host.plugins.module_utils.services.project import (
    DOOR_FILE,
    Project,
)


def door_files(project: Project, sites: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the file with the addresses of a service at the front door, none without addresses.

    SITES are entries of ``ml_front_door_sites`` with an address. They are not checked: the plan of
    the front door reports mistakes.
    """
    urls = [_url(project, site) for site in sites if site.get("service") == project.name]
    if not urls:
        return []
    return [
        {
            "path": f"{project.folder}/{DOOR_FILE}",
            "content": json.dumps(urls, indent=2) + "\n",
        }
    ]


def _url(project: Project, site: Mapping[str, Any]) -> str:
    """Return the address of the page of a service, with a placeholder for the token."""
    pages: Mapping[str, str] = project.service["urls"]
    endpoint = project.service.get("endpoint") or {}
    names = (site.get("service_port"), endpoint.get("port"), *pages)
    page = pages.get(next(filter(None, names), ""), "")
    plain = bool(site.get("plain_http"))
    port = site.get("port") or caddy.usual_port(plain)
    return caddy.site_url(site["address"], port, plain) + page
