"""Workers of a training on several nodes, and the network that they find each other on.

Gloo takes the interface that a machine's own name leads to. Where that is the loopback, as in a
container or a network namespace, workers on two nodes wait for each other on themselves.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None: none has, or nobody can say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(
                    probe.fileno(), _GET_ADDRESS, struct.pack("256s", name.encode()[:15])
                )
            except OSError:
                continue  # It has no IPv4 address.
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def choose_interface() -> None:
    """In a worker: let gloo use its node's address in Ray, unless the environment names another."""
    import ray.util

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


class NodesTorchConfig(TorchConfig):
    """Ray Train's process group, on the interface that the nodes see each other by."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets up the process group."""
        return _Backend
