"""The block explorer: server-rendered pages over the same `Query` as the API."""

from __future__ import annotations

from node.explorer.pages import error_page, install

__all__ = ["error_page", "install"]
