# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program /usr/local/lib/slipway/ml.  It runs the package beside it, slipway_ml.

Python keeps compiled modules beside their sources, where only root can write.  Compiling them in
each start would take longer than everything else.  So this program keeps them in the home folder of
the caller's account.  Compiled modules are code: a home folder that others can write is not used.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
from importlib import import_module
from importlib.machinery import FileFinder, SourceFileLoader
from types import CodeType

LIBRARY = os.path.dirname(os.path.realpath(__file__))
CACHE = ".cache/slipway/bytecode"


class CachingLoader(SourceFileLoader):
    """Loads modules, and keeps the compiled ones in the caller's cache."""

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the code of a module; a damaged file of the cache is ignored."""
        sys.pycache_prefix = cache_folder()
        sys.dont_write_bytecode = sys.pycache_prefix is None
        try:
            return super().get_code(fullname)
        except (EOFError, ImportError, TypeError, ValueError):
            path = self.get_filename(fullname)
            return self.source_to_code(self.get_data(path), path)
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = None, True


def cache_folder() -> str | None:
    """Return the folder of the caller's compiled modules, None without a safe place."""
    uid = os.geteuid()
    try:
        home = pwd.getpwuid(uid).pw_dir
        info = os.stat(home)
    except (KeyError, OSError, ValueError):
        return None
    if not home.startswith("/") or info.st_uid != uid or info.st_mode & 0o022:
        return None
    return os.path.join(home, CACHE)


def find_in_library(folder: str) -> FileFinder:
    """Return the finder of a folder of the library; raise ImportError for another folder."""
    if folder != LIBRARY and not folder.startswith(f"{LIBRARY}/"):
        raise ImportError
    return FileFinder(folder, (CachingLoader, [".py"]))


if __name__ == "__main__":
    # Ctrl-C ends the program without a traceback, also while modules are imported.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path_hooks.insert(0, find_in_library)
    sys.path.insert(0, LIBRARY)
    sys.exit(import_module("slipway_ml.main").main(sys.argv[0], sys.argv[1:]))
