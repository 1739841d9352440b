"""What each method does in Shapes and in the 2-D toy, measured: one script per page of docs/evidence."""
