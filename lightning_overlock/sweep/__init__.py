"""Sweeps: rows or a search space that are trained one by one and come out as a table."""
