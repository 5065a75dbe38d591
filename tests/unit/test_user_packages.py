# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hook of images/_shared/user_packages.py: packages of the user come before those of the image.

A virtual environment stands for /opt/venv of an image. pip in it is a stand-in.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

HOOK = Path(__file__).parents[2] / "images/_shared/user_packages.py"
NUMBER = f"{sys.version_info[0]}.{sys.version_info[1]}"
PIP = "import sys; print(sys.prefix, *sys.argv[1:])"


class Image:
    """An environment with the hook, the package `thing` 1, and a folder for the user."""

    def __init__(self, folder: Path) -> None:
        self.venv = folder / "venv"
        self.user = folder / "user"
        venv.create(self.venv, symlinks=True)
        self.site = next(self.venv.glob("lib/python3*/site-packages"))
        self.packages = self.user / self.site.relative_to(self.venv)
        self.user.mkdir()
        text = HOOK.read_text(encoding="utf-8").replace('"/opt/user"', repr(str(self.user)))
        # The tests may run as root, who can write everywhere.
        text = text.replace("os.access(image, os.W_OK)", "os.environ.get('WRITABLE')")
        (self.site / "slipway_packages.py").write_text(text, encoding="utf-8")
        (self.site / "slipway_packages.pth").write_text("import slipway_packages\n")
        (self.site / "thing.py").write_text("version = 1\n")
        (self.site / "pip").mkdir()
        (self.site / "pip/__init__.py").touch()
        (self.site / "pip/__main__.py").write_text(PIP)
        script = self.venv / "bin/pip"
        script.write_text(f"#!{self.venv}/bin/python\nimport pip.__main__\n")
        script.chmod(0o755)

    def run(self, *words: str, **variables: str) -> str:
        """Run a program of the environment; return its output."""
        done = subprocess.run(
            [str(self.venv / "bin" / words[0]), *words[1:]],
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip() + done.stderr.strip()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


@pytest.mark.parametrize("words", [["pip"], ["python", "-m", "pip"], ["python", "-s", "-m", "pip"]])
def test_pip_runs_in_the_environment_of_the_user(image: Image, words: list[str]) -> None:
    said = image.run(*words, "install", "--user", "emoji")
    assert said == f"{image.user} install emoji"
    assert (image.user / "bin/python").resolve() == (image.venv / "bin/python").resolve()


def test_pip_runs_in_the_image_if_it_may_write_there(image: Image) -> None:
    assert image.run("pip", "install", "emoji", WRITABLE="1") == f"{image.venv} install emoji"
    assert list(image.user.iterdir()) == []


def test_packages_of_the_user_come_first(image: Image) -> None:
    code = "import thing; print(thing.version)"
    assert image.run("python", "-c", code) == "1"
    # The first Python creates the folder, so a running notebook sees the first package too.
    (image.packages / "thing.py").write_text("version = 2\n")
    assert image.run("python", "-c", code) == "2"
    assert image.run("python", "-c", code, WRITABLE="1") == "1"
    image.run("pip", "list")
    # Programs that pip installs start the Python of the user's environment.
    program = [str(image.user / "bin/python"), "-c", f"{code}; import pip; print(pip.__path__)"]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["2", f"[{str(image.site / 'pip')!r}]"]


def test_packages_of_another_user_are_ignored(image: Image, tmp_path: Path) -> None:
    image.packages.mkdir(parents=True)
    (image.packages / "thing.py").write_text("raise SystemExit(1)\n")
    hook = image.site / "slipway_packages.py"
    hook.write_text(hook.read_text().replace("os.getuid()", "-1"), encoding="utf-8")
    assert image.run("python", "-c", "import thing; print(thing.version)") == "1"
    assert image.run("pip", "list") == f"{image.venv} list"


def test_an_unusable_folder_stops_no_program(image: Image) -> None:
    image.user.rmdir()
    image.user.write_text("a file")
    assert image.run("python", "-c", "import thing; print(thing.version)") == "1"
    assert image.run("pip", "list") == f"{image.venv} list"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("python -m pip install a", ["install", "a"]),
        ("python -I -m pip install --user a", ["install", "a"]),
        ("python /opt/venv/bin/pip list", ["list"]),
        (f"python /opt/venv/bin/pip{NUMBER} list", ["list"]),
        ("python train.py pip install a", None),
        ("python -m train pip", None),
        ("python -m", None),
        ("python -c pip", None),
        ("python", None),
        ("python -", None),
    ],
)
def test_arguments_of_pip(
    command: str, arguments: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The module acts when it is imported, in an environment that is not its own: not at all.
    names: dict[str, Any] = {"__file__": str(HOOK), "__name__": "slipway_packages"}
    exec(compile(HOOK.read_text(encoding="utf-8"), str(HOOK), "exec"), names)
    assert names["pip_arguments"](command.split()) == arguments
