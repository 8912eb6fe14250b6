"""Why a row misses its target, where it does: what a profile shows, and what was tried. Printed only where it is missed."""

REASONS: dict[str, str] = {}
