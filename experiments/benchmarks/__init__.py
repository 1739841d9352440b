"""Speed, each against a named alternative in the same run: one script per family."""
