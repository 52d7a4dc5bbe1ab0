"""Sprites: synthetic videos in the public formats."""
