"""One folder per published study, always the same files; `catalogue` finds them."""
