"""What answers requests: the critic server, the policy server and the reranking gateway."""
