"""pagewire bench: how fast is a service, a model on this machine, or a part of the stack alone?"""
