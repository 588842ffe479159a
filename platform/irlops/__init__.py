"""The control plane of irlops: contracts, answers, selection, registry, cluster, operator, local runner and CLI."""
