# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels that the command ``ml`` reads or writes; :mod:`docker.labels` lists all labels.

They are in this package because hosts get this package without the rest of the project.
"""

from __future__ import annotations

# On images.
IMAGE = "io.slipway.image"
VARIANT = "io.slipway.variant"
DIGEST = "io.slipway.digest"
COMMITTED_FROM = "io.slipway.committed-from"
COMMITTED_FROM_DIGEST = "io.slipway.committed-from-digest"
COMMITTED_BY = "io.slipway.committed-by"

# On containers.
ALIAS = "io.slipway.alias"
USER = "io.slipway.user"
UID = "io.slipway.uid"
GPUS = "io.slipway.gpus"
URLS = "io.slipway.urls"
TOKEN = "io.slipway.token"
COMPOSE_PROJECT = "com.docker.compose.project"
# A random number for each start, by which the guard of a start finds the container.
START = "io.slipway.start"
# The number of the Slurm job that the container ends with.
JOB = "io.slipway.job"
