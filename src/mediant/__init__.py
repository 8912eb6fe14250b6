"""Mediant: find the parts of a generative model that carry a behaviour, and prove it by intervention."""
