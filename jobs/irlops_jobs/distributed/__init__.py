"""One runtime under every job: torchrun's process group, the split of work, and optimizer steps that ignore how work was split."""
