"""The network: `port` is what the rest of the program sees of it, libp2p and links stand behind."""
