"""Base model and image backbone, loaded and checked: what every trainer shares."""
