"""The `lightning` command; nothing but wiring."""
