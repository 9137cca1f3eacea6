"""Where an arm's end effector is, and which joints put it somewhere. No simulator is imported here."""
