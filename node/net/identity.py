"""Peer ids and addresses as text, without importing libp2p (docs/spec/network.md)."""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import closing
from dataclasses import dataclass

from chain import limits
from chain.address import BASE58
from chain.errors import ConfigError, InputError

_PEER_ID = re.compile(rf"12D3KooW[{BASE58}]{{44}}")
_ADDRESS = re.compile(r"/(ip4|ip6|dns4|dns6|dns)/([^/\s]+)/tcp/([0-9]{1,5})(?:/p2p/([^/\s]+))?")


class PortInUseError(ConfigError):
    """Another process listens on the port that this node was told to use."""

    code = "port_in_use"
    exit_code = 1


def is_peer_id(text: str) -> bool:
    return _PEER_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP multiaddr: the only transport this node dials or listens on."""

    kind: str  # ip4, ip6, dns4, dns6 or dns
    host: str
    port: int
    peer_id: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises InputError, naming what was expected."""
        match = _ADDRESS.fullmatch(text) if len(text) <= limits.MAX_ADDRESS else None
        if match is None:
            raise InputError(
                f"{text[:80]!r} is no address: expected /ip4/HOST/tcp/PORT/p2p/PEER_ID"
            )
        kind, host, port, peer_id = match.groups()
        if int(port) > 65535:
            raise InputError(f"{text!r}: a port is at most 65535")
        if kind in ("ip4", "ip6"):
            wanted = ipaddress.IPv4Address if kind == "ip4" else ipaddress.IPv6Address
            try:
                wanted(host)
            except ValueError:
                raise InputError(f"{text!r}: {host!r} is no {kind} address") from None
        if peer_id is not None and not is_peer_id(peer_id):
            raise InputError(f"{text!r}: {peer_id!r} is no Ed25519 peer id")
        return cls(kind, host, int(port), peer_id)

    def __str__(self) -> str:
        peer = f"/p2p/{self.peer_id}" if self.peer_id else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{peer}"

    def with_peer(self, peer_id: str) -> Address:
        return Address(self.kind, self.host, self.port, peer_id)

    @property
    def is_loopback(self) -> bool:
        if self.kind in ("ip4", "ip6"):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"

    @property
    def is_wildcard(self) -> bool:
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified

    def at(self, host: str) -> Address:
        """The same port and peer on another host, given as an IP address."""
        kind = "ip6" if ":" in host else "ip4"
        return Address(kind, host, self.port, self.peer_id)


def check_port_free(address: Address) -> None:
    """Raise PortInUseError if something listens there.

    libp2p binds with SO_REUSEPORT, so that two nodes on one port would both "work" and each
    get half of the connections: we ask first, with an ordinary socket.
    """
    family = socket.AF_INET6 if address.kind == "ip6" else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)
        except OSError as error:
            raise PortInUseError(
                f"cannot listen on port {address.port} of {address.host} ({error.strerror}): "
                "stop the other program, or choose another port"
            ) from None


def own_host(kind: str) -> str:
    """The address that this machine's packets to the outside carry; sends nothing."""
    family, target = (
        (socket.AF_INET6, "2001:db8::1") if kind == "ip6" else (socket.AF_INET, "192.0.2.1")
    )
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return "::1" if kind == "ip6" else "127.0.0.1"
        return str(probe.getsockname()[0])
