"""The interface of an address."""

from __future__ import annotations

import os

import pytest

from selfshot.distributed import network


def test_the_interface_of_an_address() -> None:
    assert network.interface_of("127.0.0.1") == "lo"
    assert network.interface_of("203.0.113.7") is None


def test_a_choice_of_ones_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    network.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    network.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
