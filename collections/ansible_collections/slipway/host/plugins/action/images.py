# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action plugin of slipway.host.images: run the builder on the host, show its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.slipway.host.plugins.module_utils.images import delivery, fit
from ansible_collections.slipway.host.plugins.module_utils.images import job as images_job
from ansible_collections.slipway.host.plugins.module_utils.images.own_registry import Registry
from ansible_collections.slipway.host.plugins.module_utils.images.types import ImageBuild
from ansible_collections.slipway.host.plugins.module_utils.roles import ml_images
from ansible_collections.slipway.host.plugins.module_utils.state import engine, kinds
from ansible_collections.slipway.host.plugins.module_utils.state.model import Difference
from ansible_collections.slipway.host.plugins.plugin_utils import (
    ask_host,
    builders,
    catalogue_builds,
    detached_job,
    image_registry,
)
from ansible_collections.slipway.host.plugins.plugin_utils.bundle import (
    delivery as bundle_delivery,
)

Vars = Mapping[str, Any]

ARGUMENT_SPEC: dict[str, Any] = {
    **catalogue_builds.BUILD_ARGUMENT_SPEC,
    "builder": {"type": "list", "elements": "str", "default": []},
    "bundle": {"type": "str", "default": ""},
    "signer": {"type": "str", "default": ""},
}


class ActionModule(ActionBase):
    """Ansible's entry point."""

    _requires_connection = True
    _supports_check_mode = True
    _supports_async = False

    def run(
        self, tmp: str | None = None, task_vars: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build missing and outdated images, see the documentation of slipway.host.images."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validation, arguments = self.validate_argument_spec(ARGUMENT_SPEC)
        builds = catalogue_builds.Builds(arguments).select(arguments["names"])
        owned = {"images": list(map(ml_images.image_entry, builds))}
        answer = ask_host.ask(self, engine.question([owned], kinds.ALL))
        unfit = fit.conflicts([owned], answer)
        compared = engine.compare({"": owned}, answer, kinds.ALL, unfit)[""]
        differing, conflicts = compared.differences, compared.conflicts
        names = {difference.name for difference in differing}
        outdated = [build for build in builds if build.reference in names]
        result.update(
            changed=bool(differing),
            images=[{"reference": build.reference, "digest": build.digest} for build in builds],
            diff=[{"prepared": f"{difference}\n"} for difference in differing],
            conflicts=[vars(conflict) for conflict in conflicts],
            failed=bool(conflicts),
            msg="\n".join(conflict.reason for conflict in conflicts),
        )
        builder, variables = None, task_vars or {}
        if differing and not arguments["bundle"]:
            builder = self._choose_builder(arguments["builder"], builds, variables)
        if builder:
            own = self._read_registry(variables)
            result.update(_delivery(builder, own, differing, outdated, variables))
        if not differing or self._task.check_mode:
            return result
        if answer["engine"]:
            raise AnsibleActionFail(
                f"Docker does not answer on the host: {answer['engine']}; expected a running "
                "engine. Run the role docker_engine, then build again."
            )
        if builder:
            # The tasks that follow bring the images.
            result["changed"] = False
            return result
        outcome = self._install(arguments, outdated, variables)
        result.update({name: outcome.get(name, []) for name in ("built", "recorded", "fetched")})
        result["received"] = outcome.get("received", 0)
        if outcome["failed"]:
            # Without the key, the role does not go on.
            del result["conflicts"]
            reasons = [f"{reference}: {reason}" for reference, reason in outcome["failed"].items()]
            reasons += [conflict.reason for conflict in conflicts]
            result.update(failed=True, msg="\n".join(reasons))
        return result

    def _read_registry(self, variables: Vars) -> Registry | None:
        """Return the registry of the user; check it unless the survey did."""
        own = image_registry.read(variables, self._templar.template)
        if own and "__slipway_survey" not in variables:
            image_registry.check(self, own)
        return own

    def _install(
        self, arguments: Vars, builds: Sequence[ImageBuild], variables: Vars
    ) -> dict[str, Any]:
        """Bring images from the bundle, or build them; return the result of the job."""
        if arguments["bundle"]:
            return bundle_delivery.fetch(self, arguments, builds, variables)
        job = images_job.pack_job(builds, arguments["build"])
        return detached_job.run_job(self, images_job.WORK, images_job.BUILDER, job)

    def _choose_builder(
        self, wanted: Sequence[str], builds: Sequence[ImageBuild], variables: dict[str, Any]
    ) -> str | None:
        """Return the host that builds for this one, None if this host builds."""
        if wanted == [delivery.AUTO] and self._connection.transport != "ssh":
            return None
        failed = {*variables.get("ansible_play_hosts_all", ())} - {
            *variables.get("ansible_play_hosts", ())
        }
        facts = variables.get("ansible_facts", {}).get("slipway", {})
        declared = {build.reference: build.digest for build in builds}
        own = delivery.Candidate(facts.get("architecture"), declared)
        return builders.choose(wanted, own, variables, failed)


def _delivery(
    builder: str,
    registry: Registry | None,
    differing: Sequence[Difference],
    builds: Sequence[ImageBuild],
    variables: Vars,
) -> dict[str, Any]:
    """Return what the result has of a delivery; the diff names the source of an image."""
    offered, own = (
        (variables["hostvars"][name].get("__slipway_survey") or {})
        .get("delivery", {})
        .get("layers", {})
        for name in (builder, variables["inventory_hostname"])
    )
    sizes = {
        build.reference: delivery.bytes_to_pull(build.reference, build.digest, offered, own)
        for build in builds
    }
    origin = registry.server if registry else builder
    sources = {
        one: delivery.describe_source(one.expected, origin, sizes.get(one.name))
        for one in differing
    }
    lines = [dataclasses.replace(one, expected=source) for one, source in sources.items()]
    return {
        "builder": builder,
        "wanted": [build.reference for build in builds],
        "diff": [{"prepared": f"{line}\n"} for line in lines],
    }
