"""Callbacks: what a run keeps, writes and says while it trains."""
