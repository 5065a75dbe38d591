#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Print "Did you mean NAME? " for the name that is nearest to a word; print nothing without one.
# Usage: nearest.sh WORD NAME ...
set -eu
exec python3 -c '
import difflib, sys
for name in difflib.get_close_matches(sys.argv[1], sys.argv[2:], 1):
    print(f"Did you mean {name}?", end=" ")
' "$@" 2>/dev/null
