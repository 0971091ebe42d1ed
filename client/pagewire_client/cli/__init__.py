"""The command line's commands, one file each; `pagewire_client.__main__` puts them together."""
