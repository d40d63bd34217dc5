"""A self-check with a person's own weights: what is there, whether all parts agree on it, and one report that can be sent."""
