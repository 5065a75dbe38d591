#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Refresh requirements.lock from pyproject.toml: every package with hashes, for every Python the
# project accepts, and without addresses, so that any mirror serves.
# Usage: ./slipway run tools/lock.sh [--upgrade]
set -eu
cd "$(dirname -- "$0")/.."
exec uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
    --generate-hashes --no-emit-index-url --no-header --quiet \
    --output-file requirements.lock "$@"
