"""Embeddings of users, learned from event sequences without a target."""
