"""Every figure that README.md and docs/measured.md show is printed by a command here."""
