# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of GPUs, branches and offers: sound in themselves, and true of known devices."""

from __future__ import annotations

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import branches, kernels, tables

# Every data center card of a generation that people meet, and the edges of consumer lines.
KNOWN = {
    0x0FC0: "Kepler",
    0x1021: "Kepler",
    0x102D: "Kepler",
    0x1299: "Kepler",
    0x1091: "Fermi or older",
    0x1040: "Fermi or older",
    0x1140: "Fermi or older",
    0x0DC0: "Fermi or older",
    0x1340: "Maxwell",
    0x13F2: "Maxwell",
    0x17FD: "Maxwell",
    0x15F8: "Pascal",
    0x1B38: "Pascal",
    0x1D81: "Volta",
    0x1DB1: "Volta",
    0x1DB6: "Volta",
    0x1DF6: "Volta",
    0x1E02: "Turing",
    0x1EB8: "Turing",
    0x2182: "Turing",
    0x21D1: "Turing",
    0x20B0: "Ampere",
    0x20B5: "Ampere",
    0x2235: "Ampere",
    0x2236: "Ampere",
    0x25B6: "Ampere",
    0x2684: "Ada Lovelace",
    0x26B9: "Ada Lovelace",
    0x27B8: "Ada Lovelace",
    0x28F8: "Ada Lovelace",
    0x2330: "Hopper",
    0x2335: "Hopper",
    0x2342: "Hopper",
    0x2901: "Blackwell",
    0x2941: "Blackwell",
    0x2B85: "Blackwell",
    0x2BB5: "Blackwell",
    0x2E12: "Blackwell",
    0x2F04: "Blackwell",
    0x3182: "Blackwell Ultra",
    0x31C2: "Blackwell Ultra",
    0x3000: "Rubin",
    0x30FF: "Rubin",
}


@pytest.mark.parametrize(
    ("device", "architecture"), KNOWN.items(), ids=[f"{device:04x}" for device in KNOWN]
)
def test_each_known_device_has_its_architecture(device: int, architecture: str) -> None:
    assert tables.architecture_of(device).name == architecture


@pytest.mark.parametrize("row", tables.ID_RANGES, ids=lambda row: f"{row.first:04x}-{row.last:04x}")
def test_a_range_holds_exactly_its_ids(row: tables.IdRange) -> None:
    """Both ends belong to the range; the IDs just outside belong to a neighbour or to none."""
    assert tables.architecture_of(row.first) is row.architecture
    assert tables.architecture_of(row.last) is row.architecture
    for outside in (row.first - 1, row.last + 1):
        neighbours = [other for other in tables.ID_RANGES if other.first <= outside <= other.last]
        expected = neighbours[0].architecture if neighbours else None
        if expected is None and outside < tables.FIRST_MAXWELL:
            expected = tables.TOO_OLD
        elif expected is None:
            legacy = outside < tables.FIRST_TURING
            expected = tables.UNKNOWN_LEGACY if legacy else tables.UNKNOWN_CURRENT
        assert tables.architecture_of(outside) is expected


def test_ranges_rise_and_never_overlap() -> None:
    edges = [edge for row in tables.ID_RANGES for edge in (row.first, row.last)]
    assert edges == sorted(edges)
    assert len(set(edges)) == len(edges)


@pytest.mark.parametrize(
    ("device", "architecture"),
    [
        (0x0000, tables.TOO_OLD),
        (tables.FIRST_MAXWELL - 1, tables.TOO_OLD),
        (tables.FIRST_MAXWELL, tables.MAXWELL),
        (0x1437, tables.UNKNOWN_LEGACY),
        (tables.FIRST_TURING - 1, tables.UNKNOWN_LEGACY),
        (tables.FIRST_TURING, tables.UNKNOWN_CURRENT),
        (0x3341, tables.UNKNOWN_CURRENT),
        (0xFFFF, tables.UNKNOWN_CURRENT),
    ],
)
def test_the_two_borders_catch_unlisted_ids(device: int, architecture: tables.Architecture) -> None:
    assert tables.architecture_of(device) is architecture


def test_no_range_crosses_a_border_of_flavours() -> None:
    for row in tables.ID_RANGES:
        open_only_or_both = branches.OPEN in row.architecture.modules
        assert open_only_or_both == (row.first >= tables.FIRST_TURING)
        assert (row.architecture is tables.KEPLER) == (row.last < tables.FIRST_MAXWELL)


def test_every_row_names_a_source_that_is_listed() -> None:
    rows = (
        [row.architecture.source for row in tables.ID_RANGES]
        + [row.source for row in tables.ID_RANGES]
        + [row.source for row in tables.DEVICE_RULES.values()]
        + [row.source for row in branches.BRANCHES.values()]
        + [row.source for row in branches.OFFERS.values()]
    )
    assert set(rows) <= set(tables.SOURCES)


def test_single_devices_differ_from_a_known_architecture() -> None:
    for device, rule in tables.DEVICE_RULES.items():
        architecture = tables.architecture_of(device)
        assert rule.refusal or rule.first or rule.modules
        assert rule.first is None or rule.first > architecture.first
        assert rule.modules is None or rule.modules < architecture.modules


def test_names_are_of_devices_that_a_range_or_rule_knows() -> None:
    guesses = {tables.UNKNOWN_LEGACY, tables.UNKNOWN_CURRENT, tables.TOO_OLD}
    assert [
        f"{device:04x}" for device in tables.NAMES if tables.architecture_of(device) in guesses
    ] == []


@pytest.mark.parametrize(
    ("device", "name"),
    [(0x20B0, "NVIDIA A100 SXM4 40GB"), (0x3A00, "NVIDIA GPU 10de:3a00")],
)
def test_a_gpu_is_named_by_product_or_number(device: int, name: str) -> None:
    assert tables.name_of(device) == name


def test_offers_hold_known_branches_and_their_components() -> None:
    for (source, distribution, release), offer in branches.OFFERS.items():
        place = f"{source} for {distribution} {release}"
        assert source in tables.SOURCES_OF[distribution], place
        assert set(offer.branches) <= set(branches.BRANCHES), place
        assert len(set(offer.branches)) == len(offer.branches), place
        assert not set(offer.replaced) & set(offer.branches), place
        assert set(offer.replaced.values()) <= set(offer.branches), place
        if source == branches.UBUNTU:
            assert set(offer.components) == set(offer.branches), place
            assert release in kernels.RELEASE_SERIES, place


def test_long_term_support_comes_first_where_it_exists() -> None:
    for offer in branches.OFFERS.values():
        assert 580 not in offer.branches or offer.branches[0] == 580


def test_architectures_begin_with_a_branch_that_somebody_offers() -> None:
    offered = {branch for offer in branches.OFFERS.values() for branch in offer.branches}
    for row in tables.ID_RANGES:
        architecture = row.architecture
        if architecture is tables.RUBIN:
            assert architecture.first > branches.NEWEST_BRANCH
            continue
        last = architecture.last or branches.NEWEST_BRANCH
        assert any(architecture.first <= branch <= last for branch in offered), architecture.name
