# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user of a service: the user ID, and the file from which ``ml url`` reads the address."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images.declaration import suggest
from ansible_collections.slipway.host.plugins.module_utils.services.compose import (
    TOKEN,
    endpoint_secret,
)
from ansible_collections.slipway.host.plugins.module_utils.services.project import (
    ADDRESS_FILE,
    Project,
    ServiceError,
)
from ansible_collections.slipway.host.plugins.module_utils.services.secrets import (
    Secret,
    secret_path,
)


def with_user_id(
    declared: Mapping[str, Any], accounts: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return an entry of ``ml_services_instances`` with the ``uid`` of its ``user``, if it has one.

    ACCOUNTS are the entries of ``user_access_users``. Raise ServiceError for a user without a
    declared user ID: the service needs the number before the account exists.
    """
    user = declared.get("user")
    if user is None:
        return declared
    start = f"service {declared.get('name')}: user {user}:"
    if declared.get("uid") is not None:
        raise ServiceError(f"{start} uid is set too; expected one of the two. Remove uid.")
    known = {
        str(entry.get("name")): entry
        for entry in accounts
        if entry.get("state", "present") == "present"
    }
    if user not in known:
        raise ServiceError(
            f"{start} not in user_access_users; expected a user that is present. "
            f"{suggest(user, list(known)) or 'Add the user there, or set uid instead of user.'}"
        )
    uid = known[user].get("uid")
    if uid is None:
        raise ServiceError(
            f"{start} no uid in user_access_users; expected the user ID of the account. Add uid "
            f"there: the output of `id -u {user}` if the account exists, else a free number such "
            "as 2001."
        )
    return {**declared, "uid": uid}


def address_file(
    project: Project, urls: Mapping[str, str], secrets: Iterable[Secret]
) -> dict[str, Any] | None:
    """Return the file with the addresses of a service for its user, None for one without a user.

    It has no secret: the token is in a file that only the user can read.
    """
    if project.declared.get("user") is None or not urls:
        return None
    needs_token = any(TOKEN in url for url in urls.values())
    content = {
        "uid": project.user[0],
        "urls": dict(sorted(urls.items())),
        "token_file": secret_path(endpoint_secret(project), secrets) if needs_token else "",
    }
    return {
        "path": f"{project.folder}/{ADDRESS_FILE}",
        "content": json.dumps(content, indent=2, sort_keys=True) + "\n",
    }
