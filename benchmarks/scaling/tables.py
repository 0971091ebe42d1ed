"""What was simulated, as tables."""

from typing import Any

from benchmarks.scaling.step_time import MEASURED, fit, relative_errors


def fit_rows() -> list[dict[str, Any]]:
    """The measured steps, and by how much the fitted model is off."""
    model = fit()
    return [
        {
            "shape": point.shape.name,
            "num_decodes": point.step.num_decodes,
            "num_kv_tokens": point.step.num_kv_tokens,
            "num_prompt_tokens": point.step.num_prompt_tokens,
            "measured_ms": 1e3 * point.seconds,
            "error": error,
        }
        for point, error in zip(MEASURED, relative_errors(model), strict=True)
    ]
