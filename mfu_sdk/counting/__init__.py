"""What a step asked for: operator shapes in, FLOPs and bytes out."""
