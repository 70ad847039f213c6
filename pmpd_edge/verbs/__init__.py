"""The verbs of the command line: their options, and what they print. Each imports what it needs when it is called."""
