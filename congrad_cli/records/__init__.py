"""Preference data as people have it: files in any container and shape -> records, and back."""
