"""The command line: one file for each command. Nothing but this room prints or parses."""
