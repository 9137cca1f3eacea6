"""Pictures, videos and tables as text, for every room above."""
