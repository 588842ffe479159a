"""One optimizer step on the critic, one on the policy: what is in a batch, what its loss is."""
