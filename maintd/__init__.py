"""Scheduled maintenance and notifications, with proof."""

__version__ = "0.1.0"
