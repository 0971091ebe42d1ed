"""Running a step on a device: plainly on any device, or as captured graphs on a GPU."""
