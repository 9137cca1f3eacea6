"""Images, videos and tables as text, for all packages above this one."""
