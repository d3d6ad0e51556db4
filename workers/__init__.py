"""Turns a recipe into answers: mergekit, live engines, Ray actors.

Knows nothing of generations or CMA-ES.
"""
