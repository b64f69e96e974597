"""Modules that plant a fault when they are imported; test_bites.py has a separate process import them."""
