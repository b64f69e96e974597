"""Faults that test_bites.py plants in a process of its own, by importing one of these modules there."""
