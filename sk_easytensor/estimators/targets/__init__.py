"""Targets: what an estimator knows of its y, and all that is computed of it."""
