"""From a request to a concept."""
