"""Models that ship: a card, a manifest, and a recipe or a place to fetch from; found by manifest, imported by nobody."""
