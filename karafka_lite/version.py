"""The version, in its one place."""

__version__ = "0.1.0"

PLEASE_REPORT = "please report this with the lines above"
