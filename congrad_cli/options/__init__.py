"""The words of the command line: every option's type, name and help, by command."""
