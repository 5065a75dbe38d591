# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The job for the builder on a host: contexts, secrets, and the builder itself."""

from __future__ import annotations

import configparser
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.docker import labels
from ansible_collections.slipway.host.plugins.module_utils.host import job as host_job
from ansible_collections.slipway.host.plugins.module_utils.images import builder, smoke
from ansible_collections.slipway.host.plugins.module_utils.images.context import pack
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.module_utils.ml import labels as ml_labels

BUILDER = builder.__name__
# What a build trusts unless told otherwise: what its host trusts.
HOST_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def _base(build: ImageBuild, mirror: str) -> dict[str, Any]:
    """Return how the builder gets the base, and the tag it has on the host.

    A base that was bootstrapped from a MIRROR has no apt sources, so it is another one.
    """
    identity = build.root.identity + mirror
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return {
        "name": build.root.name,
        "reference": build.root.reference,
        "bootstrap": asdict(build.root.bootstrap) if build.root.bootstrap else None,
        "local": f"slipway/base:{build.root.name}-{key}",
    }


def _pip_conf(options: Mapping[str, Any]) -> str:
    """Return the content of pip.conf for a build, with PyTorch's index added to it."""
    given, index = options.get("pip_conf") or "", options.get("torch_index")
    if not index:
        return str(given)
    parser = configparser.RawConfigParser()
    parser.read_string(given)
    if not parser.has_section("global"):
        parser.add_section("global")
    extra = parser.get("global", "extra-index-url", fallback="")
    parser.set("global", "extra-index-url", f"{extra} {index}".strip())
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def job(wanted: Sequence[ImageBuild], options: Mapping[str, Any]) -> bytes:
    """Return a tar archive with everything the builder needs on the host.

    OPTIONS is ``ml_images_build``.  The archive holds secrets, so it belongs into a folder that
    only root can read.
    """
    given = {
        "pip_conf": _pip_conf(options),
        "apt_conf": options.get("apt_conf"),
        "apt_sources": options.get("apt_sources"),
    }
    lent = {name: str(content) for name, content in given.items() if content}
    files = {f"secrets/{name}": content.encode() for name, content in lent.items()}
    secrets = {name: f"secrets/{name}" for name in lent}
    ca_file = options.get("ca_file", HOST_CERTIFICATES)
    if ca_file:
        secrets["ca"] = ca_file
    entries = []
    for number, build in enumerate(wanted):
        context = f"{number}.tar"
        files[context] = pack(build.files)
        entries.append(
            {
                "name": build.name,
                "reference": build.reference,
                "digest": build.digest,
                "parent": build.parent,
                "base": _base(build, options.get("apt_mirror") or ""),
                "context": context,
                "labels": {**build.labels, labels.SMOKE: json.dumps(build.smoke)},
                "smoke": list(build.smoke),
                "smoke_timeout": build.smoke_timeout,
            }
        )
    description = {
        "builds": entries,
        "secrets": secrets,
        "base_source": options.get("base_source") or "auto",
        "apt_mirror": options.get("apt_mirror") or "",
        "apt_proxy": options.get("apt_proxy") or "",
        "proxy": {k: v for k, v in (options.get("proxy") or {}).items() if v},
        "wheels": options.get("wheels") or "",
        "parallel": options.get("parallel") or 0,
    }
    files["job.json"] = json.dumps(description).encode()
    return host_job.packed(files, (builder, host_job, smoke, labels, ml_labels))
