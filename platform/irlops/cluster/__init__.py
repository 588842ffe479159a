"""The only Kubernetes client: whatever asks a cluster for something does it through here."""
