"""How each peer does each row: its documented way, with what a careful user would add to make it fast."""
