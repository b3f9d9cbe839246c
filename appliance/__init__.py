"""Inspection appliance: a camera box that owns the reject and whose books always close."""

__version__ = "0.1.0"
