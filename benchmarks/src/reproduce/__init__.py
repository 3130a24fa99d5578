"""The claims of the ten packages and the `reproduce` command."""
