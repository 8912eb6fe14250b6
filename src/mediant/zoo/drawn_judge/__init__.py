"""A small network that tells what is in a picture of the drawn world."""
