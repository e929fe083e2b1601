"""ContMix as one operation."""
