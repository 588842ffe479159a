"""Questions with expert solutions: read, made, split, corrupted on purpose, cut into steps."""
