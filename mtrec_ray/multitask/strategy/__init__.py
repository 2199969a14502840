"""What a step trains: which of the tasks, and which of the weights."""
