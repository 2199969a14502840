"""What a config may hold: its keys, and the names that it may choose from, as their docstrings say it."""
