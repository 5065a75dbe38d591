# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compose projects: ports and GPUs that services share on one host."""
