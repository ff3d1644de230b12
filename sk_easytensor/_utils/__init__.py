"""Helpers of all other packages: validation, files, threads, locks, masking of URLs."""
