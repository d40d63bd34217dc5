"""Every figure that the README shows is printed by a command here."""
