"""Faults that test_bites.py plants into a process of its own, by importing one of these modules there."""
