"""What a PyTorchJob runs: demonstrations in, a policy and a token-level critic out."""
