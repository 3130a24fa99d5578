"""What each paper is measured by: one module per package, holding `SUITE`."""
