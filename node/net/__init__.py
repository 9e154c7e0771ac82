"""The network port and libp2p behind it. Importing this does not import libp2p."""

from chain.address import peer_id_of
from node.net.identity import Address, PortInUseError
from node.net.info import PeerInfo
from node.net.port import Network
from node.net.priority import Priority

__all__ = ["Address", "Network", "PeerInfo", "PortInUseError", "Priority", "peer_id_of"]
