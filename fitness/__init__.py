"""Turns answers into a score: prompts, generation settings, metrics, rubrics, the judge.

Knows nothing of merging, of Ray, or of search.
"""
