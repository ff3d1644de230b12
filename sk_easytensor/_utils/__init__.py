"""Helpers for every part of the library: checks, files, threads, locks."""
