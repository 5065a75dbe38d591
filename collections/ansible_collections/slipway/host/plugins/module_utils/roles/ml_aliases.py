# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of the role ml_aliases: commands that start containers of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.slipway.host.plugins.module_utils.images import fit
from ansible_collections.slipway.host.plugins.module_utils.images.index import Planned
from ansible_collections.slipway.host.plugins.module_utils.ml import (
    complete,
    doctor_compute,
    settings,
)
from ansible_collections.slipway.host.plugins.module_utils.ml.errors import MlError, suggest
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_catalogue, slurm

HEADER = "Written by Slipway's role ml_aliases; changes are overwritten."
LIBRARY = str(doctor_compute.LIBRARY)
PROGRAM = f"{LIBRARY}/{complete.ML}"
PACKAGE = "slipway_ml"
# The module that is installed as PROGRAM, beside the package.
PROGRAM_SOURCE = "program.py"
# The CUDA check, which `ml doctor` runs on the host and in containers.
CUDA_CHECK = f"{LIBRARY}/{doctor_compute.FOLDER}"
NOT_IN_CUDA_CHECK = "cuda_bundle.py"
COMMANDS = "/usr/local/bin"
DECLARATION = str(settings.HOST_FILE)
# Other folders of PATH: a command in COMMANDS must not hide a command in one of these.
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/bin", "/snap/bin")
# bash-completion loads this file in every bash; zsh and fish load the other two themselves.
BASH_COMPLETION = "/etc/bash_completion.d/slipway"
ZSH_COMPLETION = "/usr/local/share/zsh/site-functions/_slipway"
FISH_COMPLETION = "/etc/fish/conf.d/slipway.fish"

PACKAGES = ("bash-completion", "zstd")
# Options of other roles that the plan reads.
SHARED_OPTIONS = (
    *("ml_data_disks", "ml_images_present"),
    *("slurm_controller", "slurm_nodes", "slurm_state"),
)

# Names that no alias may have, because shells and scripts use them: keywords and builtins of bash,
# zsh and fish, utilities of POSIX, and common programs, installed on the host or not.
RESERVED_WORDS = (
    "alias and argparse at autoload awk basename bc begin bg bind block break builtin caller case "
    "cat cd chdir chgrp chmod chown cksum cmp comm command commandline compgen complete compopt "
    "continue contains coproc count cp crontab csplit curl cut date dc dd declare df diff dir "
    "dirname dirs disown do docker done du echo ed elif else emacs emulate enable end esac eval "
    "ex exec exit expand export expr false fc fg fi file find fold for function functions gcc "
    "getconf getopts git grep gzip hash head history iconv id if in install integer ionice ip "
    "jobs join kill less let limit link ln local locale log logger login logname logout ls make "
    "man mapfile math mesg mkdir mkfifo ml more mv nano newgrp nice nl noglob nohup not od or "
    "passwd paste patch path pax perl pgrep php ping pip pip3 pkill popd pr print printf prompt "
    "ps pushd pwd python python3 rake read readarray readonly rehash repeat return rm rmdir rsh "
    "rsync ruby scp screen sed select set setenv sh shift shopt sleep sort source split ssh "
    "status string stty su sudo suspend switch sync tabs tail tar tee test then time times tmux "
    "top touch tput tr trap true tsort tty type typeset ulimit umask unalias uname unexpand "
    "uniq unlimit unset until uptime users uv vi vim wait watch wc wget whence where which while "
    "who write xargs xz yes zcat zip zsh bash fish"
)
RESERVED = frozenset(RESERVED_WORDS.split())


class AliasError(ValueError):
    """The declaration of an alias cannot be applied."""


@dataclass(frozen=True)
class Options:
    """The settings of aliases from the role's options; see its defaults."""

    contact: str
    mounts: Sequence[Mapping[str, Any]] = ()
    common: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slurm: bool = False


@dataclass(frozen=True)
class Alias:
    """An alias of an image on this host."""

    name: str
    image: Planned
    declared: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names of the alias, the main name first."""
        return self.name, *self.declared["names"]


def aliases_of_images(images: Sequence[Planned]) -> list[Alias]:
    """Return the aliases that images declare, sorted by name."""
    aliases = [
        Alias(name, image, declared)
        for image in images
        for name, declared in (image.image.get("aliases") or {}).items()
    ]
    return sorted(aliases, key=lambda alias: alias.name)


def plan(facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``owned`` state of the role.

    FACTS is ``ansible_facts['slipway']``, OPTIONS the options of the role and of ml_catalogue, and
    SHARED_OPTIONS. Raise AliasError or DeclarationError for settings that cannot be applied.
    """
    if options["ml_aliases_state"] == "absent":
        return {"owned": removed()}
    disks = options.get("ml_data_disks") or ()
    mounts = [{"source": disk, "target": disk, "optional": True} for disk in disks]
    settings = options["ml_aliases_settings"]
    build = ml_catalogue.choose_build(facts, options)
    names = options["ml_aliases_images"]
    images = build.images(ml_catalogue.image_names(options) if names is None else names)
    if unknown := set(settings) - {alias.name for alias in aliases_of_images(images)}:
        check_known(sorted(map(str, unknown)), _all_aliases(build.catalogue))
    mounts += options["ml_aliases_mounts"]
    declared = options["ml_aliases_slurm"]
    chosen = Options(
        options["ml_aliases_contact"],
        mounts,
        options["ml_aliases_common"],
        settings,
        _is_in_cluster(facts, options) if declared is None else declared,
    )
    return {"owned": owned(images, chosen)}


def _is_in_cluster(facts: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether the inventory declares this host as a host of a Slurm cluster."""
    controller, nodes = options.get("slurm_controller"), options.get("slurm_nodes")
    if not controller or options.get("slurm_state") == "absent":
        return False
    return facts["inventory_name"] in (
        controller,
        *(nodes or facts.get("groups", {}).get(slurm.GROUP, ())),
    )


def _all_aliases(catalogue: str) -> list[str]:
    """Return the aliases of all images: settings may be shared by hosts with different images."""
    # Imported late: needed only for settings of an alias that this host does not have.
    from ansible_collections.slipway.host.plugins.module_utils.images import catalogue as images

    loaded = images.load_catalogue(Path(catalogue).resolve())
    return [name for image in loaded.images.values() for name in image.settings["aliases"]]


def owned(images: Sequence[Planned], options: Options) -> dict[str, list[dict[str, Any]]]:
    """Return the owned state of a host with these images.

    Raise AliasError for an alias that hides a system command, and for an invalid setting.
    """
    for name, alias_settings in options.settings.items():
        if not isinstance(alias_settings, Mapping):
            raise AliasError(
                f"ml_aliases_settings.{name}: not a mapping; expected settings by name, such as "
                "{gpus: all}. Change the value"
            )
    aliases = [alias for alias in aliases_of_images(images) if _is_enabled(alias.name, options)]
    for alias in aliases:
        _check_names(alias)
    names = sorted(name for alias in aliases for name in alias.names)
    commands = [complete.ML, *names]
    cuda_top = doctor_compute.FOLDER.partition("/")[0]
    files = [
        *_program_files(),
        {"path": DECLARATION, "content": _declaration(images, aliases, options)},
        {"path": BASH_COMPLETION, "content": _bash(commands)},
        {"path": ZSH_COMPLETION, "content": _zsh(commands)},
        {"path": FISH_COMPLETION, "content": _fish(commands)},
    ]
    return {
        "packages": [{"name": name} for name in PACKAGES],
        "files": files,
        # Whatever is beside the program, Python may import instead of it.
        "folders": [
            {"path": LIBRARY, "entries": sorted({PACKAGE, complete.ML, cuda_top})},
            {
                "path": f"{LIBRARY}/{PACKAGE}",
                "entries": [name for name, _value in program_sources()],
            },
            {"path": CUDA_CHECK, "entries": [name for name, _value in cuda_check_sources()]},
        ],
        "links": [
            {
                "folder": COMMANDS,
                "target": PROGRAM,
                "names": commands,
                "unhidden": list(SYSTEM_FOLDERS),
            }
        ],
    }


def removed() -> dict[str, list[dict[str, Any]]]:
    """Return the owned state of a host without this role.

    The packages are kept, because other programs may use them.
    """
    paths = (LIBRARY, DECLARATION, BASH_COMPLETION, ZSH_COMPLETION, FISH_COMPLETION)
    return {
        "packages": [],
        "files": [{"path": path, "state": "absent"} for path in paths],
        "folders": [],
        "links": [{"folder": COMMANDS, "target": PROGRAM, "names": []}],
    }


def _is_enabled(name: str, options: Options) -> bool:
    enabled = options.settings.get(name, {}).get("enabled", True)
    if not isinstance(enabled, bool):
        raise AliasError(
            f"ml_aliases_settings.{name}: enabled is {enabled!r}; expected true or false. "
            "Change the value"
        )
    return enabled


def _check_names(alias: Alias) -> None:
    for name in alias.names:
        if name in RESERVED:
            raise AliasError(
                f"alias '{name}' of image {alias.image.name} would hide the shell command {name}; "
                f"expected another name. Rename the alias in images/{alias.image.name}/image.yml, "
                f"or set ml_aliases_settings: {{{alias.name}: {{enabled: false}}}}"
            )


def check_known(names: Sequence[str], known: Sequence[str]) -> None:
    """Raise AliasError for settings of an alias that no image of the catalogue declares."""
    for name in names:
        if name not in known:
            hint = suggest(name, known)
            raise AliasError(
                f"ml_aliases_settings: unknown alias {name}; expected an alias of an image. {hint}"
            )


def _declaration(images: Sequence[Planned], aliases: Sequence[Alias], options: Options) -> str:
    """Return the declaration that the program reads on the host, as JSON."""
    declared = {
        "about": HEADER,
        "contact": options.contact,
        "images": {image.name: image.reference for image in images},
        "cuda": {
            image.reference: {"release": image.cuda, "driver": fit.oldest_driver(image.cuda)}
            for image in images
            if image.cuda
        },
        "aliases": {alias.name: _entry(alias, options) for alias in aliases},
        **({"slurm": True} if options.slurm else {}),
    }
    return json.dumps(declared, indent=1, sort_keys=True) + "\n"


def _entry(alias: Alias, options: Options) -> dict[str, Any]:
    image = alias.image
    ports = {
        name: {"inside": inside, "path": alias.declared["urls"].get(name, "")}
        for name, inside in image.image["ports"].items()
    }
    return {
        "names": list(alias.declared["names"]),
        "description": alias.declared["description"],
        "image": image.name,
        "variant": image.variant,
        "network": image.image["network"],
        "command": list(alias.declared.get("command") or image.image["command"] or ()),
        "ports": ports,
        "settings": _merged(alias, ports, options),
    }


def _as_text(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer with text for numbers: YAML reads `gpus: 0` and `cpus: 4` as numbers."""

    def text(value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if number else value

    converted = {key: text(value) for key, value in layer.items()}
    environment = converted.get("environment")
    if isinstance(environment, Mapping):
        converted["environment"] = {name: text(value) for name, value in environment.items()}
    return converted


def _merged(alias: Alias, ports: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return the checked and merged settings of all layers up to the host's."""
    alias_settings = {
        key: value
        for key, value in options.settings.get(alias.name, {}).items()
        if key != "enabled"
    }
    layers = (
        ("ml_aliases_mounts", {"mounts": list(options.mounts)}, None),
        ("ml_aliases_common", _as_text(options.common), None),
        (f"ml_aliases_settings.{alias.name}", _as_text(alias_settings), ports),
    )
    try:
        for where, layer, known in layers:
            settings.check_layer(layer, where, known)
    except MlError as error:
        raise AliasError(str(error)) from error
    image: dict[str, Any] = {"image": alias.image.reference, "ports": alias.declared["publish"]}
    for key in ("gpus", "workdir", "shm_size"):
        if alias.declared.get(key):
            image[key] = alias.declared[key]
    return settings.merge_layers(
        settings.DEFAULTS, image, *(layer for _where, layer, _known in layers)
    )


@cache
def program_sources() -> tuple[tuple[str, str], ...]:
    """Return name and content of the program's modules; each process reads them once."""
    folder = Path(settings.__file__).parent
    return tuple((f.name, f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*.py")))


@cache
def cuda_check_sources() -> tuple[tuple[str, str], ...]:
    """Return name and content of the CUDA check's modules; each process reads them once."""
    folder = Path(settings.__file__).parents[1] / "gpu"
    files = [f for f in sorted(folder.glob("cuda_*.py")) if f.name != NOT_IN_CUDA_CHECK]
    return tuple((f.name, f.read_text(encoding="utf-8")) for f in files)


PRELOAD = (program_sources, cuda_check_sources)


def _program_files() -> Iterator[dict[str, Any]]:
    """Yield the files of the program: a package, the program that runs it, the CUDA check."""
    for name, content in program_sources():
        if name == PROGRAM_SOURCE:
            # -I: Python ignores PYTHONPATH and the current folder when it imports modules.
            # -S: Python does not search the packages of the distribution, which takes time.
            # -B: Python compiles nothing into /usr/local/lib; the program has its own cache.
            head = f"#!/usr/bin/python3 -ISB\n# {HEADER}\n"
            yield {"path": PROGRAM, "content": head + content, "mode": "0755"}
        else:
            yield {"path": f"{LIBRARY}/{PACKAGE}/{name}", "content": content}
    for name, content in cuda_check_sources():
        yield {"path": f"{CUDA_CHECK}/{name}", "content": content}


def _bash(commands: Sequence[str]) -> str:
    return (
        f"# {HEADER}\n"
        "_slipway() {\n"
        "    local IFS=$'\\n' offered\n"
        f'    offered=$({PROGRAM} --complete "${{COMP_WORDS[@]:0:COMP_CWORD+1}}" 2>/dev/null)\n'
        '    COMPREPLY=($(compgen -W "$offered" -- "${COMP_WORDS[COMP_CWORD]}"))\n'
        "}\n"
        f"complete -o default -F _slipway {' '.join(commands)}\n"
    )


def _zsh(commands: Sequence[str]) -> str:
    return (
        f"#compdef {' '.join(commands)}\n"
        f"# {HEADER}\n"
        "local -a offered\n"
        f'offered=(${{(f)"$({PROGRAM} --complete "${{(@)words[1,CURRENT]}}" 2>/dev/null)"}})\n'
        "(( $#offered )) && compadd -a offered || _files\n"
    )


def _fish(commands: Sequence[str]) -> str:
    offered = f"({PROGRAM} --complete (commandline -opc) (commandline -ct) 2>/dev/null)"
    lines = [f"complete --command {name} --arguments '{offered}'" for name in commands]
    return "\n".join([f"# {HEADER}", *lines]) + "\n"
