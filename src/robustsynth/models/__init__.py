"""Classifiers, the networks inside them, and their files."""
