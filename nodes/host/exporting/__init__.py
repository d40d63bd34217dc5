"""Concepts for programs without this pack: a stock LoRA on a MODEL's weights, and what it loses."""
