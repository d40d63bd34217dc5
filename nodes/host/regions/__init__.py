"""Several concepts in one picture, each in a region of its own."""
