"""Examples, to run from a checkout with the command in their first lines."""
