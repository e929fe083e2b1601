"""`lightning bench`: models and operations, timed side by side."""
