#!/bin/sh
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The old name of start-notebook.py.
exec start-notebook.py "$@"
