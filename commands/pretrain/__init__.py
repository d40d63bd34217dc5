"""Pre-training of a domain (the paper's section 3.3): configuration, data, preparation and checks."""
