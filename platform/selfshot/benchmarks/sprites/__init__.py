"""Sprites: videos that the program composes itself, in the public formats."""
