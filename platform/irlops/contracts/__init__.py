"""Data shapes that programs exchange: job files, pairs, evaluations, HTTP bodies. No torch, no network, no file access."""
