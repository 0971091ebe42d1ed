"""The engines that a gateway gives requests to: which there are, what they hold, and which one gets a request."""
