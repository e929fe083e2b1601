"""A trained network as a file that is used without this package."""
