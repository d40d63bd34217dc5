"""E4T (arXiv 2302.12228): a domain encoder, weight offsets, and a few steps of tuning on one photo."""
