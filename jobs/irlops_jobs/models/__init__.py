"""Policies and critics by preset name: built, loaded, saved and sized."""
