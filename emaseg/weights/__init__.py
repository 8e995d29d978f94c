"""Weight files of other systems."""
