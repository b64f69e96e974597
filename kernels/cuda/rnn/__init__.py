"""Recurrence: device code, its kernel table and its launch plans."""
