"""What people are shown of results, on stderr."""
