"""What the paper says: an equation a function."""
