"""What a pre-training run is told: its settings and the file that they stand in."""
