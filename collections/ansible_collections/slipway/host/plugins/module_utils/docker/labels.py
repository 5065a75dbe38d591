# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels of the project's images and containers, and paths that several modules use.

Standard library only: this file is sent to hosts with the builder.
"""

from __future__ import annotations

from ansible_collections.slipway.host.plugins.module_utils.ml import labels as ml_labels

# On images.
IMAGE = ml_labels.IMAGE
VARIANT = ml_labels.VARIANT
DIGEST = ml_labels.DIGEST
SMOKE = "io.slipway.smoke"
END_OF_LIFE = "io.slipway.end-of-life"
SUCCESSOR = "io.slipway.successor"

OCI_TITLE = "org.opencontainers.image.title"
OCI_DESCRIPTION = "org.opencontainers.image.description"
OCI_LICENSES = "org.opencontainers.image.licenses"
OCI_SOURCE = "org.opencontainers.image.source"
OCI_VERSION = "org.opencontainers.image.version"
OCI_BASE_NAME = "org.opencontainers.image.base.name"
OCI_BASE_DIGEST = "org.opencontainers.image.base.digest"

# On containers of services.
CONFIG = "io.slipway.config"
PROOF = "io.slipway.proof"
GPUS = ml_labels.GPUS
URLS = ml_labels.URLS
TOKEN = ml_labels.TOKEN

# In images.
IMAGE_FOLDER = "/opt/slipway"
START = f"{IMAGE_FOLDER}/start"
USER_PACKAGES = "/opt/user"
BILL_OF_MATERIALS = f"{IMAGE_FOLDER}/sbom.json"

# On hosts, for root only.
STATE_FOLDER = "/var/lib/slipway"
BUILD_LOCK = f"{STATE_FOLDER}/build.lock"
DAEMON_JSON = "/etc/docker/daemon.json"
DAEMON_JSON_RECORD = f"{STATE_FOLDER}/daemon_json.json"
