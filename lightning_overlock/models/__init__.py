"""Backbones, registered with timm on import."""
