"""A separate project about sums at a till, with its own data, reward and callbacks."""
