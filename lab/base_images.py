# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build and remove the base images of throwaway hosts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from lab import emulation
from lab.bases import (
    DEFAULT_BASE,
    EMULATION_FOLDER,
    PACKAGES,
    Base,
    base_named,
    content_key,
    image_tag,
)
from lab.commands import CommandError, Completed, install_commands, install_package
from lab.containers import SECURITY_OPTIONS, bounding_set, capability_options
from lab.engine import Engine
from lab.errors import BaseUnavailableError
from lab.processes import locked

BASE_LABEL = "slipway.base"
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
REGISTRY_ANSWER_SECONDS = 10.0
PULL_SECONDS = 300.0
BUILD_SECONDS = 600.0
EMULATED_BUILD_SECONDS = 1800.0


def ensure_base(engine: Engine, base: Base) -> str:
    """Build the base image unless the engine has it; return the image tag.

    The caller holds the engine's lock. Raises BaseUnavailableError with the reason when the image
    cannot be built.
    """
    tag = image_tag(base)
    if engine.docker("image", "inspect", tag, check=False).rc == 0:
        return tag
    start, is_temporary = _start_image(engine, base)
    try:
        _build(engine, base, start, tag)
    except CommandError as error:
        raise BaseUnavailableError(f"cannot set up the base {base.name}: {error}") from error
    finally:
        if is_temporary:
            # The layers stay as long as the base that is built on them.
            engine.docker("image", "rm", start, check=False)
    older = set(_base_tags(engine, f"{BASE_LABEL}={base.name}")) - {tag}
    _remove_images(engine, older)
    return tag


def _start_image(engine: Engine, base: Base) -> tuple[str, bool]:
    """Return the image that the base is built on, and whether to remove that image afterwards."""
    if base.parent:
        return ensure_base(engine, base_named(base.parent)), False
    if base.image:
        if engine.docker("image", "inspect", base.image, check=False).rc == 0:
            return base.image, False
        return _pull(engine, base), True
    return _bootstrap(engine, base), True


def _pull(engine: Engine, base: Base) -> str:
    pull = engine.commands.run_with_output_deadline(
        "docker", "pull", base.image, first_output=REGISTRY_ANSWER_SECONDS, timeout=PULL_SECONDS
    )
    if pull.rc != 0:
        raise BaseUnavailableError(
            f"cannot pull the image {base.image} of the base {base.name}: {_error_tail(pull, 1)}"
        )
    return base.image


def _error_tail(completed: Completed, lines: int) -> str:
    """Return the last lines of a command's error output."""
    return "; ".join((completed.err.strip().splitlines() or ["no output"])[-lines:])


def _bootstrap(engine: Engine, base: Base) -> str:
    install_commands(engine.commands, "mmdebstrap")
    if not DEBIAN_KEYRING.exists():
        # Ubuntu does not trust Debian's packages by default.
        install_package(engine.commands, "debian-archive-keyring")
    with tempfile.TemporaryDirectory(prefix="slipway-base-") as folder:
        tar = Path(folder) / "base.tar"
        command = (
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            *(f"--aptopt={option}" for option in base.apt_options),
        )
        if base.is_emulated:
            command = _emulate(engine, Path(folder) / Path(EMULATION_FOLDER).name, command)
        bootstrap = engine.commands.run(
            *command, base.suite, str(tar), timeout=_build_seconds(base), check=False
        )
        if bootstrap.rc != 0:
            raise BaseUnavailableError(
                f"cannot bootstrap the base {base.name} from Debian's packages:"
                f" {_error_tail(bootstrap, 3)}"
            )
        return engine.docker("import", str(tar)).out.strip()


def _emulate(engine: Engine, emulator: Path, bootstrap: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command that bootstraps an arm64 base, which gets the emulator."""
    install_commands(engine.commands, "arch-test")
    emulation.fetch(engine, ensure_base(engine, base_named(DEFAULT_BASE)), emulator)
    copy = f"--customize-hook=copy-in {emulator} {Path(EMULATION_FOLDER).parent}"
    options = ("--architectures=arm64", "--dpkgopt=force-unsafe-io", copy)
    return emulation.start(emulator, *bootstrap, *options)


def _build_seconds(base: Base) -> float:
    return EMULATED_BUILD_SECONDS if base.is_emulated else BUILD_SECONDS


def _build(engine: Engine, base: Base, start: str, tag: str) -> None:
    container = f"slipway-base-build-{content_key(base)}"
    # An interrupted run may have left this container.
    engine.docker("rm", "--force", container, check=False)
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ("sh",)
    if base.is_emulated:
        options = (*SECURITY_OPTIONS, *capability_options(bounding_set()))
        command = emulation.start(EMULATION_FOLDER, "sh")
    try:
        engine.docker(
            *("run", "--interactive", "--name", container, *options, start, *command),
            stdin=base.script.encode(),
            timeout=_build_seconds(base),
        )
        engine.docker("commit", "--change", f"LABEL {BASE_LABEL}={base.name}", container, tag)
    finally:
        engine.docker("rm", "--force", container, check=False)


def purge_bases(engine: Engine, dry_run: bool = False) -> bool:
    """Remove all base images that no container uses; return whether an image was removed.

    A dry run counts images in use too: only the engine can refuse a removal.
    """
    if engine.version() is None:
        return False
    with locked(engine.lock):
        tags = _base_tags(engine, BASE_LABEL)
        if dry_run:
            return bool(tags)
        return _remove_images(engine, tags)


def _base_tags(engine: Engine, label: str) -> list[str]:
    tag_format = "{{.Repository}}:{{.Tag}}"
    return engine.lines("image", "ls", f"--filter=label={label}", f"--format={tag_format}")


def _remove_images(engine: Engine, tags: Iterable[str]) -> bool:
    # The engine refuses to remove an image that a container uses.
    removed = [tag for tag in tags if engine.docker("image", "rm", tag, check=False).rc == 0]
    return bool(removed)
