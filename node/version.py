"""The version of the installed distribution."""

from importlib import metadata


def version() -> str:
    return metadata.version("blyan")
