"""What is computed with weights."""
