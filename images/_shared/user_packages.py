# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts the packages that a user installed with pip before those of the image.

Every Python of /opt/venv imports this module at its start, from slipway_packages.pth. /opt/user is
a virtual environment above /opt/venv: the aliases mount a folder of the user there, so its packages
last. pip runs in /opt/user, unless its process may write to /opt/venv, as root may. A folder of
another user is never used.

Uses no pathlib, whose import would cost time at each start of Python.
"""

from __future__ import annotations

import os
import site
import sys

USER = "/opt/user"
PIP = ("pip", "pip3", f"pip{sys.version_info[0]}.{sys.version_info[1]}")


def pip_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of pip from the words of a Python command; None for another program.

    A user installation is the only one here, so --user is left out.
    """
    for index, word in enumerate(words[1:], 1):
        if word == "-m" and words[index + 1 : index + 2] == ["pip"]:
            rest = words[index + 2 :]
        elif word.rpartition("/")[2] in PIP:
            rest = words[index + 1 :]
        elif word.startswith("-") and word not in ("-m", "-c"):
            continue
        else:
            return None
        return [argument for argument in rest if argument != "--user"]
    return None


def own_packages(image: str) -> str | None:
    """Return the package folder of the user, created if necessary; None if it is not usable.

    `image` is the package folder of the image.
    """
    if not os.path.ismount(USER) and os.access(image, os.W_OK):
        return None
    packages = USER + image.removeprefix(sys.prefix)
    try:
        os.makedirs(packages, exist_ok=True)
        return packages if os.stat(packages).st_uid == os.getuid() else None
    except OSError:
        return None


def prepare_environment(image: str, packages: str) -> None:
    """Make /opt/user a virtual environment that contains the packages of the image too."""
    os.makedirs(f"{USER}/bin", exist_ok=True)
    with open(f"{sys.prefix}/pyvenv.cfg", encoding="utf-8") as settings:
        _write(f"{USER}/pyvenv.cfg", settings.read())
    if not os.path.islink(f"{USER}/bin/python"):
        os.symlink(os.path.realpath(sys.executable), f"{USER}/bin/python")
    _write(f"{packages}/slipway_image.pth", f"import site; site.addsitedir({image!r})\n")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)


def put_first(image: str, packages: str) -> None:
    """Insert the user's packages into the search path, before those of the image."""
    count = len(sys.path)
    site.addsitedir(packages)
    added = sys.path[count:]
    del sys.path[count:]
    position = sys.path.index(image) if image in sys.path else count
    sys.path[position:position] = added


def main() -> None:
    """Run pip in the user's environment, or add the user's packages to this process."""
    image = os.path.dirname(__file__)
    if not image.startswith(f"{sys.prefix}/"):
        # The Python of /opt/user itself.
        return
    packages = own_packages(image)
    if packages is None:
        return
    arguments = pip_arguments(sys.orig_argv)
    if arguments is not None:
        try:
            prepare_environment(image, packages)
        except OSError as error:
            print(f"pip: cannot prepare {USER}: {error.strerror}", file=sys.stderr)
        else:
            python = f"{USER}/bin/python"
            os.execv(python, [python, "-m", "pip", *arguments])
    put_first(image, packages)


main()
