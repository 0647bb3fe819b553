"""The HTML report: what was kept and dropped, why, and what the languages disagree on."""
