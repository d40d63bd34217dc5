"""What a MODEL does with concepts: weights and refinement."""
