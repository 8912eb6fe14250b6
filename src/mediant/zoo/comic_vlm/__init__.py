"""A small Qwen3-VL that reads comic strips."""
