"""What lies on the table, what it looks like and what is asked of it. No simulator is imported here."""
