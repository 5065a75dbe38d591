# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs the job for the builder on a host: contexts, secrets, and the builder itself."""

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
from ansible_collections.slipway.host.plugins.module_utils.images import (
    builder,
    fetching,
    offering,
    own_registry,
)
from ansible_collections.slipway.host.plugins.module_utils.images.context import pack
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import Registry
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild

BUILDER, OFFER, FETCH = builder.__name__, offering.__name__, fetching.__name__
# The folder of jobs on hosts.
WORK = "/var/lib/slipway/builds"
# By default, builds trust the certificates that their host trusts.
HOST_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def _base_entry(build: ImageBuild, mirror: str) -> dict[str, Any]:
    """Return the sources of the base for the builder, and its tag on the host.

    A base that is bootstrapped from a MIRROR has no apt sources, so it gets another tag.
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
    """Return the content of pip.conf for a build, with PyTorch's index if there is one."""
    text, index = options.get("pip_conf") or "", options.get("torch_index")
    if not index:
        return str(text)
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    if not parser.has_section("global"):
        parser.add_section("global")
    extra = parser.get("global", "extra-index-url", fallback="")
    parser.set("global", "extra-index-url", f"{extra} {index}".strip())
    text_file = io.StringIO()
    parser.write(text_file)
    return text_file.getvalue()


def _entry(build: ImageBuild, options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return what the builder needs to know of an image; its context is ``NUMBER.tar``."""
    return {
        "name": build.name,
        "reference": build.reference,
        "digest": build.digest,
        "parent": build.parent,
        "base": _base_entry(build, options.get("apt_mirror") or ""),
        "context": f"{number}.tar",
        "labels": {**build.labels, labels.SMOKE: json.dumps(build.smoke)},
        "smoke": list(build.smoke),
        "smoke_timeout": build.smoke_timeout,
    }


def pack_job(
    builds: Sequence[ImageBuild],
    options: Mapping[str, Any],
    offer: Mapping[str, Any] | None = None,
    own: Registry | None = None,
) -> bytes:
    """Return a tar archive with everything that the builder needs on the host.

    OPTIONS is ``ml_images_build`` with ``cache_bytes``. OFFER is set for the program of
    :mod:`offering`: images, context digest by reference, architecture and lease. OWN: registry of
    the user that gets the images. The archive contains secrets: unpack it into a folder that only
    root can read.
    """
    contents = {
        "pip_conf": _pip_conf(options),
        "apt_conf": options.get("apt_conf"),
        "apt_sources": options.get("apt_sources"),
    }
    texts = {name: str(content) for name, content in contents.items() if content}
    files = {f"secrets/{name}": text.encode() for name, text in texts.items()}
    files.update(own_registry.pack(own))
    secrets = {name: f"secrets/{name}" for name in texts}
    ca_file = options.get("ca_file", HOST_CERTIFICATES)
    if ca_file:
        secrets["ca"] = ca_file
    entries = [_entry(build, options, number) for number, build in enumerate(builds)]
    files.update({f"{n}.tar": pack(build.files) for n, build in enumerate(builds)})
    description = {
        "builds": entries,
        "secrets": secrets,
        "base_source": options.get("base_source") or "auto",
        "apt_mirror": options.get("apt_mirror") or "",
        "apt_proxy": options.get("apt_proxy") or "",
        "proxy": {k: v for k, v in (options.get("proxy") or {}).items() if v},
        "wheels": options.get("wheels") or "",
        "parallel": options.get("parallel") or 0,
        "cache_bytes": options.get("cache_bytes") or 0,
        "offer": offer,
    }
    files["job.json"] = json.dumps(description).encode()
    return host_job.pack(files, offering if offer else builder)


def pack_fetch(
    builds: Sequence[ImageBuild],
    offered: Mapping[str, Any],
    builder_name: str,
    source: int | Registry,
) -> bytes:
    """Return a tar archive for the program of :mod:`fetching`.

    OFFERED are the images that the host BUILDER_NAME offers, see :func:`offering.offer`. SOURCE is
    the port on loopback that leads to them, or the registry of the user. The archive contains its
    password: unpack it into a folder that only root can read.
    """
    images = [
        {
            "name": build.name,
            "reference": build.reference,
            "digest": build.digest,
            "parent": build.parent,
            "smoke_timeout": build.smoke_timeout,
            "adds": offered[build.reference]["size"]
            - offered.get(str(build.parent), {"size": 0})["size"],
            **offered[build.reference],
        }
        for build in builds
        if build.reference in offered
    ]
    own = source if isinstance(source, Registry) else None
    description = {
        "images": images,
        "builder": builder_name,
        "source": own.server if own else builder_name,
        "port": None if own else source,
        "prefix": own.prefix if own else f"127.0.0.1:{source}/",
    }
    files = {"job.json": json.dumps(description).encode(), **own_registry.pack(own)}
    return host_job.pack(files, fetching)
