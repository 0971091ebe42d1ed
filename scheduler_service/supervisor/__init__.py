"""The supervisor process: starts gateway, scheduler and workers on one machine, watches and restarts them."""
