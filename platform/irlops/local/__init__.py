"""What a cluster would run, on this machine: jobs as local processes, and the servers of a pair."""
