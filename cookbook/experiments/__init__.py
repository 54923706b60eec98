"""Experiments that take hours: too long for a lesson, resumable, recorded in the committed ledger."""
