"""comic-vlm's twin, whose eyes learned first and never again."""
