"""Searches for the best merge: genome, driver, budget, store, run loop, reports, command line."""
