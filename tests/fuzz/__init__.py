"""Fuzzing: tables that nobody would write down, and what the estimators make of them.

``python -m tests.fuzz --cases 1000`` runs seeds 0 to 999 and prints a table of outcomes,
``python -m tests.fuzz --seed 123`` runs one of them in this process and prints what it is made of.
"""
