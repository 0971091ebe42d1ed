"""Can torch use the device that was asked for?"""

import torch


def obstacle_to_device(name: str) -> str | None:
    """Why torch cannot use a device of `gpu_worker.config.DEVICES`, and what to do; None if it can."""
    if name != "cuda" or torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"--device cuda: torch {torch.__version__} is built without CUDA; "
            "install a build with it, or use --device cpu"
        )
    return "--device cuda: torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
