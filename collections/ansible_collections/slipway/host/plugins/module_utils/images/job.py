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
from ansible_collections.slipway.host.plugins.module_utils.images import builder
from ansible_collections.slipway.host.plugins.module_utils.images.context import pack
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild

BUILDER = builder.__name__
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


def pack_job(builds: Sequence[ImageBuild], options: Mapping[str, Any]) -> bytes:
    """Return a tar archive with everything that the builder needs on the host.

    OPTIONS is ``ml_images_build``.  The archive contains secrets: unpack it into a folder that only
    root can read.
    """
    contents = {
        "pip_conf": _pip_conf(options),
        "apt_conf": options.get("apt_conf"),
        "apt_sources": options.get("apt_sources"),
    }
    texts = {name: str(content) for name, content in contents.items() if content}
    files = {f"secrets/{name}": text.encode() for name, text in texts.items()}
    secrets = {name: f"secrets/{name}" for name in texts}
    ca_file = options.get("ca_file", HOST_CERTIFICATES)
    if ca_file:
        secrets["ca"] = ca_file
    entries = []
    for number, build in enumerate(builds):
        context = f"{number}.tar"
        files[context] = pack(build.files)
        entries.append(
            {
                "name": build.name,
                "reference": build.reference,
                "digest": build.digest,
                "parent": build.parent,
                "base": _base_entry(build, options.get("apt_mirror") or ""),
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
    return host_job.pack(files, builder)
