# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of GPUs, branches and offers: sound in themselves, and true of known devices."""

from __future__ import annotations

import pytest
from ansible_collections.slipway.host.plugins.module_utils.gpu import tables as data

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
    0x2E12: "Blackwell Ultra",
    0x2F04: "Blackwell",
    0x3182: "Blackwell Ultra",
    0x31C2: "Blackwell Ultra",
    0x3000: "Rubin",
    0x30FF: "Rubin",
}


@pytest.mark.parametrize(
    ("device", "architecture"), KNOWN.items(), ids=[f"{device:04x}" for device in KNOWN]
)
def test_known_devices(device: int, architecture: str) -> None:
    assert data.architecture_of(device).name == architecture


@pytest.mark.parametrize("row", data.ID_RANGES, ids=lambda row: f"{row.first:04x}-{row.last:04x}")
def test_a_range_holds_exactly_its_ids(row: data.IdRange) -> None:
    """Both ends belong to the range; the IDs just outside belong to a neighbour or to none."""
    assert data.architecture_of(row.first) is row.architecture
    assert data.architecture_of(row.last) is row.architecture
    for outside in (row.first - 1, row.last + 1):
        neighbours = [other for other in data.ID_RANGES if other.first <= outside <= other.last]
        expected = neighbours[0].architecture if neighbours else None
        if expected is None and outside < data.FIRST_MAXWELL:
            expected = data.TOO_OLD
        elif expected is None:
            legacy = outside < data.FIRST_TURING
            expected = data.UNKNOWN_LEGACY if legacy else data.UNKNOWN_CURRENT
        assert data.architecture_of(outside) is expected


def test_ranges_rise_and_never_overlap() -> None:
    edges = [edge for row in data.ID_RANGES for edge in (row.first, row.last)]
    assert edges == sorted(edges)
    assert len(set(edges)) == len(edges)


@pytest.mark.parametrize(
    ("device", "architecture"),
    [
        (0x0000, data.TOO_OLD),
        (data.FIRST_MAXWELL - 1, data.TOO_OLD),
        (data.FIRST_MAXWELL, data.MAXWELL),
        (0x1437, data.UNKNOWN_LEGACY),
        (data.FIRST_TURING - 1, data.UNKNOWN_LEGACY),
        (data.FIRST_TURING, data.UNKNOWN_CURRENT),
        (0x3341, data.UNKNOWN_CURRENT),
        (0xFFFF, data.UNKNOWN_CURRENT),
    ],
)
def test_the_two_borders_catch_unlisted_ids(device: int, architecture: data.Architecture) -> None:
    assert data.architecture_of(device) is architecture


def test_no_range_crosses_a_border_of_flavours() -> None:
    for row in data.ID_RANGES:
        open_only_or_both = data.OPEN in row.architecture.modules
        assert open_only_or_both == (row.first >= data.FIRST_TURING)
        assert (row.architecture is data.KEPLER) == (row.last < data.FIRST_MAXWELL)


def test_every_row_names_a_source_that_is_listed() -> None:
    rows = (
        [row.architecture.source for row in data.ID_RANGES]
        + [row.source for row in data.ID_RANGES]
        + [row.source for row in data.DEVICE_RULES.values()]
        + [row.source for row in data.BRANCHES.values()]
        + [row.source for row in data.OFFERS.values()]
    )
    assert set(rows) <= set(data.SOURCES)


def test_single_devices_differ_from_a_known_architecture() -> None:
    for device, rule in data.DEVICE_RULES.items():
        architecture = data.architecture_of(device)
        assert rule.refusal or rule.first or rule.modules
        assert rule.first is None or rule.first > architecture.first
        assert rule.modules is None or rule.modules < architecture.modules


def test_names_are_of_devices_that_a_range_or_rule_knows() -> None:
    guesses = {data.UNKNOWN_LEGACY, data.UNKNOWN_CURRENT, data.TOO_OLD}
    assert [
        f"{device:04x}" for device in data.NAMES if data.architecture_of(device) in guesses
    ] == []


@pytest.mark.parametrize(
    ("device", "name"),
    [(0x20B0, "NVIDIA A100 SXM4 40GB"), (0x3A00, "NVIDIA GPU 10de:3a00")],
)
def test_a_gpu_is_named_by_product_or_number(device: int, name: str) -> None:
    assert data.name_of(device) == name


def test_offers_hold_known_branches_and_their_components() -> None:
    for (source, distribution, release), offer in data.OFFERS.items():
        place = f"{source} for {distribution} {release}"
        assert source in data.SOURCES_OF[distribution], place
        assert set(offer.branches) <= set(data.BRANCHES), place
        assert len(set(offer.branches)) == len(offer.branches), place
        assert not set(offer.replaced) & set(offer.branches), place
        assert set(offer.replaced.values()) <= set(offer.branches), place
        if source == data.UBUNTU:
            assert set(offer.components) == set(offer.branches), place
            assert release in data.RELEASE_KERNEL, place


def test_long_term_support_comes_first_where_it_exists() -> None:
    for offer in data.OFFERS.values():
        assert 580 not in offer.branches or offer.branches[0] == 580


def test_architectures_begin_with_a_branch_that_somebody_offers() -> None:
    offered = {branch for offer in data.OFFERS.values() for branch in offer.branches}
    for row in data.ID_RANGES:
        architecture = row.architecture
        if architecture is data.RUBIN:
            assert architecture.first > data.NEWEST_BRANCH
            continue
        last = architecture.last or data.NEWEST_BRANCH
        assert any(architecture.first <= branch <= last for branch in offered), architecture.name
