"""How fast: kshot against its own plain loop, against the peers that are installed, and against the limit."""
