"""A FLUX.2 Klein of seven million parameters that draws from text and edits with a reference."""
