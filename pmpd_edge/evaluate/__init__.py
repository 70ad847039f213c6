"""What answers are worth: tasks and metrics."""
