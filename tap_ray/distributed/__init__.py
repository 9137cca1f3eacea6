"""Every `import ray` of the project, a file a verb. Without this package each stage still runs in one process."""
