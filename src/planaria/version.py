"""The version of this installation, for results and manifests."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """Version of the installed package; "0+source" where the sources run without an installation.

    Example:
        >>> version().startswith("0")
        True
    """
    try:
        return metadata.version("planaria")
    except metadata.PackageNotFoundError:
        return "0+source"
