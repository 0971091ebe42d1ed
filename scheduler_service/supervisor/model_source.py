"""Which local files does a model spec mean? Fetches what is not there yet.

A spec is `demo`, the path of a GGUF file or of a safetensors directory, a Hub id (`org/name`), one GGUF file of a Hub
repository (`org/name/file.gguf`), or a shape to be filled with random weights (`dummy:qwen3-0.6b`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scheduler_service.supervisor.demo_model import DEMO_NAME, fetch_demo
from scheduler_service.supervisor.dummy_model import PREFIX, write_dummy
from scheduler_service.supervisor.errors import ServiceError
from scheduler_service.supervisor.hub import fetch_file, fetch_snapshot

OnProgress = Callable[[str, int, int], None]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HUB_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]+)/([\w./-]+\.gguf)")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on this machine's disk, and the name it is served under. Some have no weights there."""

    path: Path
    name: str
    has_weights: bool = True


def resolve_model(spec: str, cache_dir: Path, scratch_dir: Path, on_progress: OnProgress) -> ModelSource:
    """Find or fetch a model.

    Args:
        spec: what the user gave, see above.
        cache_dir: where the demo model and dummy models are kept; Hub models are kept in the Hub's own cache.
        scratch_dir: a path on the same file system, for a directory; the caller removes it.
        on_progress: told stage, bytes done and bytes to do (0: not known).

    Raises:
        ServiceError: there is no such model, or it cannot be fetched.
    """
    if spec == "demo":
        return ModelSource(fetch_demo(cache_dir, scratch_dir, on_progress), DEMO_NAME)
    if spec.startswith(PREFIX):
        name = spec.removeprefix(PREFIX)
        return ModelSource(write_dummy(name, cache_dir), name, has_weights=False)
    try:
        path = Path(spec).expanduser()
        if path.exists():
            return _local(path.resolve())
    except OSError as error:
        raise ServiceError(f"cannot read the model at {spec}: {error.strerror}; check path and permissions") from error
    except RuntimeError as error:
        raise ServiceError(f"there is no model at {spec}: no such home directory is known; check the path") from error
    if _is_meant_as_path(spec):
        raise ServiceError(f"there is no model at {spec}: check the path")
    if match := _HUB_FILE.fullmatch(spec):
        return ModelSource(fetch_file(match[1], match[2], on_progress), Path(match[2]).stem)
    if _HUB_ID.fullmatch(spec):
        return ModelSource(fetch_snapshot(spec, on_progress), spec)
    raise ServiceError(
        f"{spec!r} is no model: give a GGUF file, a directory with config.json and *.safetensors, "
        "a Hub id such as org/name, demo, or dummy:NAME"
    )


def _local(path: Path) -> ModelSource:
    if path.is_dir():
        _check_directory(path)
        return ModelSource(path, path.name)
    if path.stat().st_size == 0:
        raise ServiceError(f"{path} is empty: fetch the model again")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ServiceError(f"{path} is not a GGUF file: give a .gguf file or a safetensors directory")
    return ModelSource(path, path.stem)


def _check_directory(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ServiceError(f"{path} has no config.json: give the directory that holds the model's files")


def _is_meant_as_path(spec: str) -> bool:
    return spec.startswith(("/", ".", "~")) or (spec.endswith(".gguf") and spec.count("/") != 2) or spec.count("/") > 2
